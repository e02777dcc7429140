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
"""``run.json`` in an output folder: what was run, for the report, which is made from the files of the folder."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bundle.checkpoints.model_json import read_class_labels, read_description
from bundle.core.errors import BundleError
from bundle.core.files import read_text, write_atomically
from bundle.core.provenance import is_procedural
from bundle.core.settings import parse_boolean
from bundle.data.datalists import stems_sha256
from bundle.data.file_types import stem_of
from bundle.data.splits import read_groups
from bundle.inference.failures import Failure
from bundle.inference.mask_layout import MaskLayout

# The record of a run, and the page that is made from it.
NAME, REPORT = "run.json", "report.html"
COMMANDS = ("training", "evaluation", "inference")
# Masks of an inference that are shown over their images, and inputs that failed.
PICTURES, MOST_FAILED = 12, 200
# Folders above a file or folder may name a patient or a user: a report has the last part of a path alone.
ABOVE = re.compile(r"(?<![\w.…:/])~?/(?:[^/'\",\[\](){}<>|;]+/)+")


@dataclass(frozen=True)
class RunRecord:
    """The facts of a run.

    Attributes:
        command: one of `COMMANDS`.
        written: date and time, of this machine.
        version: of the bundle.
        words: of the command line, none where it was called from Python, or with anonymous names.
        settings: those that are not the defaults; with anonymous names no text of them.
        machine: device, versions of the libraries.
        images: of each part of the data, how many there are.
        stems_sha256: of each part, the sha256 of its sorted stems.
        procedural: whether the images are drawn by a program.
        volumes: whether they are volumes.
        groups: of each stem its group, where ``split`` names some.
        labels: names of the classes.
        model: ``model.json`` of the weights.
        pictures: of an inference, the image of some masks, by the file name of the mask.
        failures: of an inference, stems of the inputs that are not finished, and why.
    """

    command: str
    written: str
    version: str
    words: list[str]
    settings: dict[str, Any]
    machine: dict[str, str]
    images: dict[str, int]
    stems_sha256: dict[str, str]
    procedural: bool
    volumes: bool
    groups: dict[str, str]
    labels: list[str]
    model: dict[str, Any]
    pictures: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)


def describe_run(
    command: str,
    datalists: Mapping[str, Sequence[Mapping[str, Any]]],
    weights: str,
    bundle_version: str,
    settings: Mapping[str, Any],
    device: torch.device,
    volumes: bool = False,
    split: Mapping[str, Any] | None = None,
    **inference: Any,
) -> RunRecord:
    """Return the record of a run.

    Args:
        command: one of `COMMANDS`.
        datalists: the records of each part of the data.
        weights: the weights file that was written or read.
        bundle_version: of the bundle.
        settings: those that are not the defaults.
        device: that computed.
        volumes: whether the data are volumes.
        split: names the groups of the images, see `bundle.data.datalists.load_datalists`.
        inference: ``pictures`` and ``failures`` of an inference.
    """
    records = [record for part in datalists.values() for record in part]
    stems = [stem_of(record["image"]) for record in records]
    groups = (split or {}).get("groups")
    anonymous = parse_boolean(settings.get("anonymous_names", False), "anonymous_names")
    return RunRecord(
        command=command,
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=bundle_version,
        words=[] if anonymous else _command_line(sys.argv),
        settings=json.loads(json.dumps(_without_names(settings) if anonymous else settings, default=str)),
        machine=describe_machine(device),
        images={part: len(found) for part, found in datalists.items() if found},
        stems_sha256={part: stems_sha256(found) for part, found in datalists.items() if found},
        procedural=is_procedural(records),
        volumes=volumes,
        groups={} if groups is None else read_groups(groups, stems, Path("the data")),
        labels=list(read_class_labels(weights).values()),
        model=read_description(weights),
        **inference,
    )


def describe_inputs(
    layout: MaskLayout, failures: Sequence[Failure], images: Sequence[str], volumes: bool
) -> dict[str, Any]:
    """Return ``pictures`` and ``failures`` of an inference, see `RunRecord`.

    Args:
        layout: of the masks.
        failures: inputs that are not finished.
        images: paths of the inputs.
        volumes: whether they are volumes, which have no pictures.
    """
    unfinished = {failure.image for failure in failures if not failure.has_mask}
    finished = [] if volumes else [image for image in images if image not in unfinished]
    chosen = finished[:: max(1, math.ceil(len(finished) / PICTURES))]
    reasons = [(stem_of(failure.image), shorten_sentence(failure.reason, failure.image)) for failure in failures]
    return {
        "pictures": {layout.filename(subject=image).name: image for image in chosen},
        "failures": reasons[:MOST_FAILED],
    }


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what computed, and with which versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, {device.type}"
    libraries = ("torch", "monai", "numpy")
    return {
        "device": f"{name}, {torch.get_num_threads()} threads",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{library} {version(library)}" for library in libraries),
    }


def _processor() -> str:
    """Return the name of the processor; Linux has it in a file, other systems give a short one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _without_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose texts and lists, which may name a folder of a patient, are an ellipsis."""
    return {name: value if isinstance(value, (bool, int, float)) else "…" for name, value in settings.items()}


def _command_line(words: Sequence[str]) -> list[str]:
    """Return the words of a ``python -m``, of MONAI or a script; none where another program called it."""
    if words[1:2] == ["run"]:
        return ["python", "-m", "monai.bundle", *words[1:]]
    program = Path(words[0])
    return ["python", "-m", f"scripts.{program.stem}", *words[1:]] if program.parent.name == "scripts" else []


def shorten_paths(value: str) -> str:
    """Return a value or a word of a command line, whose absolute paths are their last parts after an ellipsis."""
    return ABOVE.sub("…/", value)


def shorten_sentence(sentence: str, image: str) -> str:
    """Return a sentence on an input in which the path of that is its stem, and other paths are their last parts."""
    return " ".join(map(shorten_paths, sentence.replace(image, stem_of(image)).split(" ")))


def write_record(record: RunRecord, folder: Path) -> None:
    """Write ``run.json`` into a folder."""
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / NAME, lambda path: path.write_text(text, encoding="utf-8"))


def read_record(folder: Path) -> RunRecord:
    """Read ``run.json`` of a folder; `BundleError` where there is none, or it is of another version."""
    path = folder / NAME
    if not path.is_file():
        raise BundleError(f"{folder} has no {NAME}; expected the folder of a training, an evaluation or an inference.")
    try:
        return RunRecord(**json.loads(read_text(path, "Record")))
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path} is no record of this version ({error}); run the command again.") from error
