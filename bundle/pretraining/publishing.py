# Copyright (c) The SAM-SP bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The end of a pre-training: write the weights of the SAM, and print the next command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from bundle.checkpoints.model_files import copy_pair, describe_network, write_pair
from bundle.core.command_line import bundle_command
from bundle.pretraining.prompted_sam import PromptedSam
from bundle.sam_sp.network import SamSP
from bundle.training.checkpoints import BEST


class BasePublisher:
    """Write the weights of the SAM and their description at the end of a pre-training, and print the next command.

    The best network is written to ``output_dir/sam_NAME.pt`` and ``.json``; with ``publish`` also to ``models/base``,
    from where every training with this ``sam`` starts.

    Args:
        bundle_root: folder of the bundle.
        output_dir: folder of the run.
        network: the network that is trained.
        evaluator: engine that validates it.
        recipe: the settings that the description records.
        publish: whether to publish.
    """

    def __init__(
        self,
        bundle_root: str,
        output_dir: str,
        network: PromptedSam,
        evaluator: SupervisedEvaluator,
        recipe: Mapping[str, Any],
        publish: bool = False,
    ) -> None:
        self.bundle_root = Path(bundle_root)
        self.output_dir = Path(output_dir)
        self.network = network
        self.evaluator = evaluator
        self.recipe = dict(recipe)
        self.publish = publish

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Write, publish and report."""
        state = self.evaluator.state
        self.network.load_state_dict(torch.load(self.output_dir / BEST, map_location="cpu", weights_only=True))
        network: SamSP = self.network.network
        description = describe_network(
            network,
            pretrained_on="procedural scenes, no real image",
            recipe=self.recipe,
            best_epoch=state.best_metric_epoch,
            validation={state.key_metric_name: round(state.best_metric, 4)},
        )
        name = f"sam_{network.sam}.pt"
        pair = write_pair(network.merged_state_dict(), description, self.output_dir / name)
        if self.publish:
            target = self.bundle_root / "models" / "base" / name
            copy_pair(pair, target)
            pair = target
        options = {"weights": pair}
        evaluate_prompts = bundle_command(
            "evaluating_prompts", ["configs/pretrain.json", "configs/evaluate_prompts.json"], options, self.bundle_root
        )
        print(
            f"\nBest mean IoU after a box and after a point, on procedural validation scenes: {state.best_metric:.4f} "
            f"(epoch {state.best_metric_epoch})\nWrote\n  {pair}\n  {pair.with_suffix('.json')}\n"
            f"Next, on procedural test scenes:\n  {evaluate_prompts}",
            flush=True,
        )
