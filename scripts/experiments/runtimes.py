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
"""Dice and time of a network in each runtime it can be exported to: ``python -m scripts.experiments.runtimes``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from bundle.checkpoints.model_files import load_weights
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.data.datalists import load_datalists
from bundle.data.image_files import open_mask
from bundle.export.check import Runner
from bundle.export.exporter import FORMATS, merge_for_export
from bundle.sam.input_kinds import get_kind
from bundle.sam_sp.network import SamSP
from scripts import onnx_demo
from scripts.benchmarks import measure
from scripts.experiments.polyps import corrected

EAGER = "PyTorch eager"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.experiments.runtimes", description=__doc__)
    parser.add_argument("--weights", default="models/model.pt", help="a published pair of one class (%(default)s)")
    parser.add_argument("--dataset_dir", required=True, help="folder with images and masks")
    parser.add_argument("--test", help="text file with the names of the test images; by default a tenth")
    parser.add_argument("--count", type=int, help="only so many of them, the first")
    options = parser.parse_args(arguments)
    network = merge_for_export(load_weights(build_network(options.weights), options.weights))
    if network.num_classes > 1:
        raise BundleError(f"{options.weights} has {network.num_classes} classes; the table is of one.")
    records = load_datalists(options.dataset_dir, {"test": options.test} if options.test else None)["test"]
    records = [record for record in records if record["label"] is not None]  # the table is of images with an object
    with tempfile.TemporaryDirectory() as folder:
        dice, seconds = measure_runtimes(make_runtimes(network, Path(folder)), network, records[: options.count])
    print(markdown(dice, seconds, options.weights))


def make_runtimes(network: SamSP, folder: Path) -> dict[str, Runner]:
    """Return the network in each runtime, PyTorch first; files go to ``folder``."""
    runtimes: dict[str, Runner] = {EAGER: network}
    names = {"torchscript": "TorchScript", "torch_export": "torch.export", "onnx": "ONNX in onnxruntime"}
    for name, title in names.items():
        path = folder / f"model{FORMATS[name].suffix}"
        FORMATS[name].write(network, path, {"metadata.json": "{}"})
        runtimes[title] = FORMATS[name].load(path)
    runtimes["ONNX int8 in onnxruntime"] = FORMATS["onnx"].load(quantize(path, folder / "int8.onnx"))
    runtimes["ONNX in OpenVINO, float32"] = openvino_runner(path, "f32")
    runtimes["ONNX in OpenVINO, its default"] = openvino_runner(path, None)
    return runtimes


def quantize(source: Path, target: Path) -> Path:
    """Quantize weights of matrix products to int8, and activations dynamically, with onnxruntime's own tool.

    Weights use 7 of 8 bits: otherwise sums of two products saturate on a CPU with AVX2 only.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    operations = ["MatMul", "Gemm"]
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=operations, reduce_range=True)
    return target


def openvino_runner(path: Path, precision: str | None) -> Runner:
    """Load an ONNX file into OpenVINO on the CPU; its default is bfloat16 where the CPU has instructions for it."""
    try:
        import openvino
    except ImportError as error:
        raise BundleError(f'{error}: pip install --constraint constraints.txt ".[export]".') from error
    hint = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), **hint})

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model(images.numpy())["pred"])

    return run


@torch.no_grad()
def measure_runtimes(
    runtimes: Mapping[str, Runner], network: SamSP, records: Sequence[Mapping[str, str]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the Dice at original resolution and the seconds of the network, for each image, with runtimes in turns."""
    facts = {"image_size": network.image_size, "num_classes": 1, "intensity": get_kind(network.input).intensity()}
    dice: dict[str, list[float]] = {name: [] for name in runtimes}
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for record in tqdm(records, desc="images", file=sys.stderr):
        with Image.open(record["image"]) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        label = open_mask(record["label"]) > 127
        image, size = onnx_demo.prepare(picture, facts)
        for name, run in runtimes.items():
            start = time.perf_counter()
            logits = run(torch.from_numpy(image)[None])
            seconds[name].append(time.perf_counter() - start)
            mask = onnx_demo.mark(onnx_demo.enlarge(logits[0].numpy(), size, picture.size), facts) > 0
            dice[name].append(corrected.dice(mask, label))
    return dice, seconds


def markdown(dice: Mapping[str, Sequence[float]], seconds: Mapping[str, Sequence[float]], weights: str) -> str:
    """Return the table; times are medians, the ratio is to PyTorch eager in the same run."""
    machine, reference = measure.machine(), median(seconds[EAGER])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, PyTorch {machine['torch']}, load of the machine {load:.1f}; "
        f"{weights}, {len(dice[EAGER])} images, one at a time, in turns",
        "",
        "| runtime | Dice | drop | ms | time ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in dice.items():
        took = median(seconds[name])
        drop = round(mean(dice[EAGER]) - mean(values), 4) + 0.0  # no -0.0
        lines.append(f"| {name} | {mean(values):.4f} | {drop:.4f} | {took * 1e3:.1f} | {took / reference:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
