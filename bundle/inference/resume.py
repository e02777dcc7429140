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
"""Resume an inference: several processes share the inputs, and a restart continues where they stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from bundle.core.distributed import rank, world_size
from bundle.core.engines import image_meta
from bundle.core.errors import BundleError
from bundle.core.files import append_text, write_text
from bundle.inference.failures import Failures

Record = Mapping[str, Any]


class Manifest:
    """Record which inputs have masks: each process adds a line to its own file when masks are written.

    The first line records how the masks are made, every other is the path of an input as a JSON string. All files of
    the folder count, so that any number of processes can continue the work of others. If a process is killed between a
    mask and its line, only the masks of its last batch are made again.

    Args:
        folder: folder of the files, ``00000.jsonl`` for the first process and so on.
        datalist: all inputs, the same for every process; ``image`` is the path of one.
        made_with: values that must be the same when the inference is resumed.

    Raises:
        BundleError: the files are of an inference with another ``made_with``.
    """

    def __init__(self, folder: str, datalist: Sequence[Record], made_with: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / f"{rank():05d}.jsonl"
        self.made_with = json.loads(json.dumps(made_with))
        done = self._read()
        left = [record for record in datalist if record["image"] not in done]
        self.total, self.left = len(datalist), len(left)
        # no process adds a line before all have read the files
        if dist.is_initialized():
            dist.barrier()
        self.share = left[rank() :: world_size()]
        self._begin()

    def announce(self) -> None:
        """Print how many inputs are left, in the first process."""
        if rank() == 0:
            print(
                f"{self.total - self.left} of {self.total} inputs have their masks; {world_size()} processes share "
                f"the other {self.left}.",
                flush=True,
            )

    def add(self, images: Sequence[str]) -> None:
        """Record that the masks of these inputs are written."""
        append_text(self.path, "".join(json.dumps(image) + "\n" for image in images))

    def _read(self) -> set[str]:
        done: set[str] = set()
        for file in sorted(self.folder.glob("*.jsonl")):
            header, *lines = file.read_text(encoding="utf-8").split("\n")
            if json.loads(header) != self.made_with:
                raise BundleError(
                    f"{file} is of an inference with {header}, this one has {json.dumps(self.made_with)}: name another "
                    "--output_dir, or remove that folder to make all masks anew."
                )
            done.update(path for path in map(_path, lines) if path is not None)
        return done

    def _begin(self) -> None:
        """Write the first line, or complete a last line that a killed process left unfinished."""
        if not self.path.is_file():
            write_text(self.path, json.dumps(self.made_with) + "\n")
        elif not self.path.read_bytes().endswith(b"\n"):
            append_text(self.path, "\n")


def _path(line: str) -> str | None:
    """Return the path in a line; None where a killed process left an incomplete JSON string."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


class NoteFinished:
    """Record the inputs of each batch after its masks are written; a handler of an inference.

    Args:
        manifest: the manifest of this process.
        failures: inputs that are not finished, so that a later run takes them up again.
    """

    def __init__(self, manifest: Manifest, failures: Failures) -> None:
        self.manifest = manifest
        self.failures = failures

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Attach to the evaluator, whose postprocessing writes the masks before."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Add the lines of a batch."""
        images = [str(meta["filename_or_obj"]) for meta in image_meta(engine.state.batch)]
        self.manifest.add([image for image in images if image not in self.failures])
