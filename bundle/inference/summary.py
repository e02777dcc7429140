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
"""The closing lines of an inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.core.provenance import is_procedural
from bundle.inference.failures import Failures

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator


class InferenceSummary:
    """Print how many masks an inference wrote and where.

    Args:
        output_dir: folder of the masks.
        datalist: the records of the inputs.
        failures: inputs without a mask.
        form: format of the masks, in words.
    """

    def __init__(
        self, output_dir: str, datalist: Sequence[Mapping[str, Any]], failures: Failures, form: str = "0/255 PNG"
    ) -> None:
        self.output_dir = Path(output_dir)
        self.datalist = datalist
        self.failures = failures
        self.form = form

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to the evaluator of an inference."""
        from ignite.engine import Events  # late: the predictor has no engine

        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Print the summary."""
        print_summary(self.output_dir, self.datalist, self.failures, self.form)


def print_summary(output_dir: Path, datalist: Sequence[Mapping[str, Any]], failures: Failures, form: str) -> None:
    """Print how many masks were written and where; the arguments are those of `InferenceSummary`."""
    kind = "procedural inputs" if is_procedural(datalist) else "inputs"
    count = len(datalist) - failures.without_mask
    print(f"\nWrote the masks ({form}) of {count} {kind} to {output_dir}", flush=True)
