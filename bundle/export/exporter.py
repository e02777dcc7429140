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
"""Export of a published network to other runtimes: TorchScript, ONNX or a `torch.export` program."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer

from bundle.checkpoints.model_configs import metadata_for
from bundle.checkpoints.model_json import read_description
from bundle.core.errors import BundleError
from bundle.core.files import write_sums, write_together
from bundle.core.provenance import is_procedural
from bundle.core.signs_of_life import Work, working
from bundle.export.check import Runner, check_export, images_with_different_boxes
from bundle.sam.input_kinds import get_kind
from bundle.sam_sp.network import SamSP

# Size of the example batch: with one image torch.export would treat the batch dimension as a constant.
EXAMPLES = 2


@dataclass(frozen=True)
class Format:
    """A file format: its extension, how to write and to load it, and the next step to print."""

    suffix: str
    write: Callable[[SamSP, Path, Mapping[str, str]], None]
    load: Callable[[Path], Runner]
    next_step: str


class Exporter:
    """Write a network as one file, and keep the file only if it agrees with PyTorch on images.

    Args:
        network: the network; adapters, if it has any, are merged in a copy.
        weights: its ``model.pt``; the ``model.json`` beside it is embedded in the file.
        format: "torchscript", "onnx" or "torch_export".
        output_dir: folder of ``model.ts``, ``model.onnx`` or ``model.pt2``, and its sha256 in a file beside it.
        bundle_root: folder of the bundle; its ``metadata.json`` and ``inference.json`` are embedded in the file.

    Raises:
        BundleError: the format is unknown, or requires a package that is not installed.
    """

    def __init__(self, network: SamSP, weights: str, format: str, output_dir: str, bundle_root: str) -> None:
        if format not in FORMATS:
            raise BundleError(f"format is '{format}', expected one of {', '.join(FORMATS)}.")
        self.network = merge_for_export(network)
        self.weights = weights
        self.format = FORMATS[format]
        self.output_dir = Path(output_dir)
        self.configs = Path(bundle_root) / "configs"

    def run(self, dataset: Sequence[Mapping[str, Any]], inferer: Inferer, records: Sequence[Mapping[str, Any]]) -> Path:
        """Export, check and report; return the path of the file.

        Args:
            dataset: the dataset of an inference, for the check.
            inferer: the inferer of an inference.
            records: the records of the dataset.

        Raises:
            BundleError: the file does not agree with the network, or the dataset has too few different images.
        """
        with working("Exporting: images for the check") as work:
            return self._run(dataset, inferer, records, work)

    def _run(
        self, dataset: Sequence[Mapping[str, Any]], inferer: Inferer, records: Sequence[Mapping[str, Any]], work: Work
    ) -> Path:
        images = images_with_different_boxes(self.network, dataset, inferer)
        name = f"model{self.format.suffix}"
        agreements: list[str] = []

        def write(folder: Path) -> None:
            work.note(f"Exporting: writing {name}", begins=True)
            self.format.write(self.network, folder / name, self._metadata_files())
            work.note(f"Exporting: checking {name}", begins=True)
            agreements.extend(map(str, check_export(self.format.load(folder / name), self.network, images, name)))
            write_sums(folder / f"{name}.sha256", sorted(folder.iterdir()))

        # ONNX beyond 2 GB keeps its weights in a second file
        write_together(self.output_dir, write)
        target = self.output_dir / name
        kind = "procedural images" if is_procedural(records) else "images"
        lines = [f"Wrote {target} ({target.stat().st_size / 1e6:.1f} MB), checked against PyTorch on {kind}:"]
        lines += [f"  {agreement}" for agreement in agreements]
        lines.append(self.format.next_step.format(path=str(target), word=shlex.quote(str(target))))
        print("\n".join(["", *lines]), flush=True)
        return target

    def _metadata_files(self) -> dict[str, str]:
        """Return names and texts of the embedded JSON files, which describe the network and its input."""
        metadata = metadata_for(self.configs.parent, Path(self.weights))
        inference = json.loads((self.configs / "inference.json").read_text(encoding="utf-8"))
        description = read_description(self.weights)
        extra_files = {
            "metadata.json": metadata_of(self.network, metadata, description),
            "inference.json": inference,
            "model.json": {**description, "intensity": get_kind(self.network.input).intensity()},
        }
        return {name: json.dumps(content, ensure_ascii=False) for name, content in extra_files.items()}


def merge_for_export(network: SamSP) -> SamSP:
    """Return the network in evaluation mode, without adapters and gradients; one with adapters, or compiled, is copied.

    A copy is not compiled: a file holds the network's own operations.
    """
    if network.has_lora or network.image_encoder.compiled_for != "off":
        network = copy.deepcopy(network).merge_lora()
    return network.eval().requires_grad_(False)


def metadata_of(network: SamSP, metadata: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the bundle with the size and the classes of this network in ``network_data_format``."""
    result: dict[str, Any] = copy.deepcopy(dict(metadata))
    side = [network.image_size, network.image_size]
    entries = result["network_data_format"]
    entries["inputs"]["image"] |= {"spatial_shape": side} | _value_range(network)
    entries["outputs"]["pred"] |= {"spatial_shape": side, "num_channels": network.num_classes}
    if "labels" in description:
        names = [name for number, name in description["labels"].items() if number != "0"]
        entries["outputs"]["pred"]["channel_def"] = {str(index): name for index, name in enumerate(names)}
    return result


def _value_range(network: SamSP) -> dict[str, list[int]]:
    """Return the range of the values that a network takes, if its kind of input has one."""
    intensity = get_kind(network.input).intensity()
    return {} if intensity["mean"] else {"value_range": intensity["range"]}


def _example(network: SamSP) -> torch.Tensor:
    """Return an example input, (EXAMPLES, 3, S, S), on the device of the network."""
    side = network.image_size
    return torch.zeros(EXAMPLES, 3, side, side, device=network.prompt_encoder.dense_pe.device)


def _batch() -> dict[str, dict[int, Any]]:
    """Return the dynamic dimensions of the input: the batch."""
    return {"image": {0: torch.export.Dim("batch")}}


@torch.no_grad()
def write_torchscript(network: SamSP, path: Path, extra_files: Mapping[str, str]) -> None:
    """Write a traced TorchScript; SAM's modules cannot be scripted. MONAI's loaders read the extra files."""
    from monai.data import save_net_with_metadata
    from monai.networks.utils import convert_to_torchscript

    with warnings.catch_warnings():
        # A value that the tracer wrongly recorded as a constant fails in the check, with other batches and boxes.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = convert_to_torchscript(network, inputs=[_example(network)], use_trace=True, check_trace=False)
        extra = {name: text.encode() for name, text in extra_files.items() if name != "metadata.json"}
        with open(path, "wb") as file:  # given a path, PyTorch ends the process where the disk is full
            metadata = json.loads(extra_files["metadata.json"])
            save_net_with_metadata(traced, file, meta_values=metadata, more_extra_files=extra)


def load_torchscript(path: Path) -> Runner:
    """Load a TorchScript module, as MONAI Deploy does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path))


@torch.no_grad()
def write_torch_export(network: SamSP, path: Path, extra_files: Mapping[str, str]) -> None:
    """Write a `torch.export` program with a dynamic batch and the extra files."""
    program = torch.export.export(network, (_example(network),), dynamic_shapes=_batch(), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine
    with warnings.catch_warnings():
        # The warning says that q, k and v are parts of one weight; the check shows that it is complete.
        warnings.filterwarnings("ignore", message="No complete tensor found", category=UserWarning)
        buffer = io.BytesIO()  # given a path, PyTorch ends the process where the disk is full
        torch.export.save(program, buffer, extra_files=dict(extra_files))
    path.write_bytes(buffer.getbuffer())


def load_torch_export(path: Path) -> Runner:
    """Load the program as a module."""
    return torch.export.load(path).module()


@torch.no_grad()
def write_onnx(network: SamSP, path: Path, extra_files: Mapping[str, str]) -> None:
    """Write ONNX with input "image", output "pred" and a dynamic batch; the extra files become metadata of the model.

    Raises:
        BundleError: onnx or onnxscript is missing.
    """
    with _require_export_extra(), _silence_optimizer():
        program = torch.onnx.export(
            network,
            (_example(network),),
            input_names=["image"],
            output_names=["pred"],
            dynamic_shapes=_batch(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # they hold stack traces with paths of this machine
    program.model.metadata_props.update(extra_files)
    program.save(path)


def load_onnx(path: Path) -> Runner:
    """Load the model into onnxruntime on the CPU, with as many threads as PyTorch uses.

    Raises:
        BundleError: onnxruntime is missing.
    """
    with _require_export_extra():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["pred"], {"image": images.cpu().numpy()})[0])

    return run


@contextlib.contextmanager
def _require_export_extra() -> Iterator[None]:
    """Turn an ImportError into a `BundleError` that says what to install."""
    try:
        yield
    except ImportError as error:
        raise BundleError(
            f'ONNX needs more packages ({error}): pip install --constraint constraints.txt ".[export]".'
        ) from error


@contextlib.contextmanager
def _silence_optimizer() -> Iterator[None]:
    """Silence the optimizer's log messages on each node that it merges or keeps."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FORMATS: Mapping[str, Format] = {
    "torchscript": Format(
        ".ts",
        write_torchscript,
        load_torchscript,
        "Next: torch.jit.load({path!r}), also in C++ and in MONAI Deploy. PyTorch deprecates TorchScript.",
    ),
    "onnx": Format(
        ".onnx",
        write_onnx,
        load_onnx,
        "Next, with numpy, Pillow and onnxruntime alone: python scripts/onnx_demo.py {word} IMAGE MASK.png",
    ),
    "torch_export": Format(
        ".pt2", write_torch_export, load_torch_export, "Next: torch.export.load({path!r}).module()(image)"
    ),
}
