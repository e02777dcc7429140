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
"""What a training writes while it runs and when it ends."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader

from bundle import lora
from bundle.demo import is_procedural
from bundle.errors import BundleError
from bundle.network import SamSP
from bundle.sam import PIXEL_MEAN, PIXEL_STD
from bundle.summaries import bundle_command
from bundle.weights import describe, publish_pair, write_atomically, write_pair

LAST, BEST, PREVIOUS = "last.pt", "best.pt", "previous"
LOSS = "train_loss"


def image_meta(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metadata of each image of a decollated batch, for ``MetricsSaver``."""
    return [item["image"].meta for item in batch]


class CheckpointKeeper:
    """Keep ``last.pt`` after every epoch and ``best.pt`` after every better validation; resume from the first.

    Unlike MONAI's ``CheckpointSaver`` it replaces a file in one step, so a run that is killed while it saves loses
    nothing, and it remembers the best validation over a resume. In the list of handlers it comes after
    ``ValidationHandler``.

    The files of an earlier run in the same folder move to ``previous``, unless it is resumed.

    Args:
        output_dir: where the two files go.
        save_dict: objects with a state that ``last.pt`` holds; "network" alone goes into ``best.pt``.
        evaluator: engine whose key metric decides.
        resume: go on from ``last.pt``.

    Raises:
        BundleError: there is nothing to resume, nothing left to train, or the loss is not finite; what was saved stays.
    """

    def __init__(
        self, output_dir: str, save_dict: Mapping[str, Any], evaluator: SupervisedEvaluator, resume: bool = False
    ) -> None:
        self.output_dir = Path(output_dir)
        self.save_dict = dict(save_dict)
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._restore)
        else:
            engine.add_event_handler(Events.STARTED, self._set_aside)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far."""
        state = self.evaluator.state
        return {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the best validation of an earlier run."""
        for key, value in state.items():
            setattr(self.evaluator.state, key, value)

    def _set_aside(self, engine: SupervisedTrainer) -> None:
        """Move what an earlier run left: nobody takes it for this run's, and a forgotten resume loses nothing."""
        for name in (LAST, BEST):
            if (self.output_dir / name).is_file():
                (self.output_dir / PREVIOUS).mkdir(exist_ok=True)
                os.replace(self.output_dir / name, self.output_dir / PREVIOUS / name)

    def _restore(self, engine: SupervisedTrainer) -> None:
        path = self.output_dir / LAST
        if not path.is_file():
            raise BundleError(f"There is nothing to resume: {path} does not exist.")
        try:
            CheckpointLoader(str(path), self._objects(engine), map_location={"cuda:0": "cpu"})(engine)
        except ValueError as error:
            raise BundleError(f"{path} cannot be resumed: {error}") from error
        if engine.state.epoch >= engine.state.max_epochs:
            raise BundleError(f"{path} has all of its {engine.state.epoch} epochs: ask for more with --epochs.")

    def _save(self, engine: SupervisedTrainer) -> None:
        loss = engine.state.metrics[LOSS]
        if not math.isfinite(loss):
            raise BundleError(
                f"The training loss is {loss} in epoch {engine.state.epoch}: try a smaller --learning_rate; nothing "
                f"was published, and {self.output_dir} keeps the epoch before."
            )
        state = {name: item.state_dict() for name, item in self._objects(engine).items()}
        write_atomically(self.output_dir / LAST, lambda path: torch.save(state, path))
        if self.evaluator.state.best_metric_epoch == engine.state.epoch:
            write_atomically(self.output_dir / BEST, lambda path: torch.save(state["network"], path))

    def _objects(self, engine: SupervisedTrainer) -> dict[str, Any]:
        return {**self.save_dict, "trainer": engine, "best": self}


class Publisher:
    """At the end of a training write the weights file, publish it, and say what to do next.

    The best network, or the last one where there was no validation, goes merged to ``output_dir/model.pt`` with its
    ``model.json``, and the adapters in peft's format to ``output_dir/adapter``. Unless the data are procedural or
    ``publish`` is false, the pair then replaces the one in ``models``. After an exception none of this happens.

    Args:
        bundle_root: its ``models`` is where one publishes.
        output_dir: see above.
        network: what is trained.
        evaluator: engine that validated it.
        datalists: the records trained on and validated on, "train" and "validation".
        publish: whether to publish.
        command: knobs to repeat in the next command, "dataset_dir" and "split".
    """

    def __init__(
        self,
        bundle_root: str,
        output_dir: str,
        network: SamSP,
        evaluator: SupervisedEvaluator,
        datalists: Mapping[str, Sequence[Mapping[str, Any]]],
        publish: bool = True,
        command: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle_root = Path(bundle_root)
        self.output_dir = Path(output_dir)
        self.network = network
        self.evaluator = evaluator
        self.datalists = datalists
        self.publish = publish
        self.command = dict(command or {})

    def attach(self, engine: SupervisedTrainer) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Write, publish, report."""
        network: SamSP = getattr(self.network, "module", self.network)
        validated = self.evaluator.state.best_metric_epoch > 0
        if validated and not math.isfinite(self.evaluator.state.best_metric):
            raise BundleError(f"The best validation is {self.evaluator.state.best_metric}: nothing was published.")
        if validated:
            network.load_state_dict(torch.load(self.output_dir / BEST, map_location="cpu", weights_only=True))
        pair = write_pair(network.merged_state_dict(), self._description(network, engine), self.output_dir / "model.pt")
        written = [pair, pair.with_suffix(".json")]
        if lora.has_lora(network.image_encoder):
            lora.save_adapter(network.image_encoder, self.output_dir / "adapter")
            written.append(self.output_dir / "adapter")
        procedural = is_procedural(self.datalists["train"])
        published = self.publish and not procedural
        if published:
            target = publish_pair(pair, self.bundle_root / "models")
            written += [target, target.with_suffix(".json")]
        self._report(written, validated, procedural, None if published else pair)

    def _description(self, network: SamSP, engine: SupervisedTrainer) -> dict[str, Any]:
        state = self.evaluator.state
        stems = sorted(Path(str(record["image"])).stem for record in self.datalists["train"])
        validated = state.best_metric_epoch > 0
        return describe(
            network,
            exclusive=False,
            labels={"0": "background", "1": "foreground"},
            intensity={"mean": PIXEL_MEAN, "std": PIXEL_STD, "range": [0, 255]},
            trained_on={
                "procedural": is_procedural(self.datalists["train"]),
                "train_images": len(stems),
                "validation_images": len(self.datalists["validation"]),
                "train_stems_sha256": hashlib.sha256("\n".join(stems).encode()).hexdigest(),
            },
            epochs=engine.state.epoch,
            best_epoch=state.best_metric_epoch if validated else None,
            validation={state.key_metric_name: round(state.best_metric, 4)} if validated else None,
            version=json.loads((self.bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"],
        )

    def _report(self, written: Sequence[Path], validated: bool, procedural: bool, weights: Path | None) -> None:
        state = self.evaluator.state
        lines = (
            [f"Best validation Dice of y1: {state.best_metric:.4f} (epoch {state.best_metric_epoch})"]
            if validated
            else []
        )
        lines += ["Wrote", *(f"  {path}" for path in written)]
        if procedural:
            lines.append("The data were procedural, so models/ stays as it is.")
        lines += ["Next, on the test images:", f"  {self._next_command(weights)}"]
        print("\n" + "\n".join(lines), flush=True)

    def _next_command(self, weights: Path | None) -> str:
        configs = "['configs/train.json','configs/evaluate.json']"
        return bundle_command("evaluating", configs, {**self.command, "weights": weights})
