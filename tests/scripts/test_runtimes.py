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
"""The table of runtimes: Dice, time, and the two runtimes that no export writes a file for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bundle.core.errors import BundleError
from bundle.data.datalists import load_datalists
from bundle.procedural.demo_set import make_demo
from bundle.sam_sp.network import SamSP
from scripts.experiments import runtimes as export_table


@pytest.fixture
def product(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An ONNX model pred = image W, and W."""
    weight = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "W"], ["pred"])],
        "product",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(weight, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    return tmp_path / "product.onnx", weight


@pytest.mark.parametrize("seed", range(8))  # without AVX-512, sums of some of them saturated
def test_openvino_and_int8_compute_it_too(seed: int, product: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, weight = product
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    expected = x @ torch.from_numpy(weight)
    exact = export_table.openvino_runner(path, "f32")(x)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-4)
    quantized = export_table.FORMATS["onnx"].load(export_table.quantize(path, tmp_path / "int8.onnx"))(x)
    assert 0 < (quantized - expected).abs().max() < 0.1 * expected.abs().max()


def test_dice_time_and_table(toy: str, tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "demo", count=10, seed=3)
    records = load_datalists(str(folder), {"test": 2, "validation": 0})["test"]
    network = SamSP(toy, trainable="decoder").eval()
    runtimes = {export_table.EAGER: network, "all": lambda images: torch.ones(1, 1, 64, 64)}
    dice, seconds = export_table.measure_runtimes(runtimes, network, records)
    for record, value in zip(records, dice["all"], strict=True):
        label = export_table.open_mask(record["label"]) > 127
        assert value == pytest.approx(2 * label.mean() / (1 + label.mean()))
    table = export_table.markdown(dice, seconds, "model.pt").splitlines()
    assert len(table) == 6 and table[-2].startswith("| PyTorch eager |") and table[-2].endswith("| 1.00 |")


def test_a_missing_model_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There are no weights at"):
        export_table.main(["--weights", str(tmp_path / "none.pt"), "--dataset_dir", str(tmp_path)])
