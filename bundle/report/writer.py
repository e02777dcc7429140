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
"""``report.html`` in an output folder: written when a command ends, and from the files of the folder again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from bundle.core.distributed import rank
from bundle.core.files import write_atomically
from bundle.inference.failures import Failures
from bundle.inference.mask_layout import MaskLayout
from bundle.report.contents import Report, read_report
from bundle.report.figures import draw_interval
from bundle.report.run_record import REPORT, describe_inputs, describe_run, write_record

TEMPLATE = "report.html.j2"


class ReportWriter:
    """Write ``run.json`` and ``report.html`` when a training or an evaluation ends.

    In the list of handlers it comes after those that write ``model.json``, tables and panels. A report that cannot be
    written costs a line, not the run.

    Args:
        command: "training", "evaluation" or "inference".
        output_dir: folder of the run.
        bundle_root: folder of the bundle, whose version is written.
        datalists: the records of each part of the data.
        weights: the weights file that is written or read.
        device: that computes.
        settings: those that are not the defaults, see `bundle.core.setting_check.changed_settings`.
        volumes: whether the data are volumes.
        split: may name a file of groups, see `bundle.data.datalists.load_datalists`.
    """

    def __init__(
        self,
        command: str,
        output_dir: str,
        bundle_root: str,
        datalists: Mapping[str, Sequence[Mapping[str, Any]]],
        weights: str,
        device: torch.device,
        settings: Mapping[str, Any],
        volumes: bool = False,
        split: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.bundle_root = Path(output_dir), Path(bundle_root)
        self.known: dict[str, Any] = {
            "command": command, "datalists": datalists, "weights": weights, "device": device, "settings": settings,
            "volumes": volumes, "split": split,
        }  # fmt: skip

    def attach(self, engine: SupervisedTrainer | SupervisedEvaluator) -> None:
        """Attach to the engine of the command."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer | SupervisedEvaluator) -> None:
        """Write the files, and print where the report is."""
        self.write()

    def write(self, **inference: Any) -> None:
        """Write the files; the arguments are those of an inference, see `describe_run`."""
        try:
            metadata = json.loads((self.bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))
            write_record(describe_run(bundle_version=metadata["version"], **self.known, **inference), self.folder)
            print(f"Report: {write_report(self.folder)}", flush=True)
        except Exception as error:  # whatever is wrong with a report, the results are there
            reason = (str(error).strip().splitlines() or [""])[0]
            print(f"There is no report of this run ({type(error).__name__}: {reason})", flush=True)


class InferenceReport(ReportWriter):
    """Write the report of an inference: a step of the run, after the table of masks is complete.

    Args:
        layout: of the masks.
        failures: inputs that are not finished.
        others: see `ReportWriter`; ``datalists`` has the one part "inference".
    """

    def __init__(self, layout: MaskLayout, failures: Failures, **others: Any) -> None:
        super().__init__("inference", **others)
        self.layout, self.failures = layout, failures

    def conclude(self) -> None:
        """Write the files in the first process; all processes call it."""
        failures = self.failures.gather()
        if rank() > 0:
            return
        images = [str(record["image"]) for record in self.known["datalists"]["inference"]]
        self.write(**describe_inputs(self.layout, failures, images, self.known["volumes"]))


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from the files of an output folder; return its path.

    Raises:
        BundleError: the folder has no record of a run, or a file in it cannot be read.
    """
    text = render(read_report(folder))
    write_atomically(folder / REPORT, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / REPORT


def render(report: Report) -> str:
    """Return the page of a report; all texts are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _format_score
    environment.globals["draw_interval"] = draw_interval
    return environment.get_template(TEMPLATE).render(report=report, record=report.record)


def _format_score(value: float, digits: int = 3) -> str:
    """Return a number with its digits, and a dash for one that is not defined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "\N{EN DASH}"
