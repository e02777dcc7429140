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
"""The commands that take a network out: exports, the demo of ONNX, small artefacts, MONAI's own exports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from PIL import Image

from bundle.checkpoints.model_files import load_weights
from bundle.checkpoints.model_json import read_description
from bundle.checkpoints.network_builder import build_network
from tests.conftest import ROOT
from tests.workflows.commands import INFER, META, SMALL, TRAIN, command, load, refused

EXPORT = [INFER, str(ROOT / "configs" / "export.json")]
MERGE = str(ROOT / "configs" / "merge.json")
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BASE = ROOT / "models" / "base" / "sam_vit_tiny.pt"


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a training with adapters at 64 px from the shipped base; its output is not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    (root / "configs").mkdir()
    shutil.copy(META, root / "configs")
    shutil.copy(INFER, root / "configs")
    settings = {**SMALL, "trainable": "lora", "sam_checkpoint": str(BASE), "epochs": 1, "publish": False}
    command("training", TRAIN, root, dataset_dir=str(dataset), **settings)
    return root


def test_onnx_and_its_demo_mark_what_an_inference_marks(trained: Path, dataset: Path, tmp_path: Path) -> None:
    """The command on a user's own model, then the demo on an upright and a wide image, without torch in its process."""
    weights, out = str(trained / "output" / "model.pt"), tmp_path / "with space"
    common = {"dataset_dir": str(dataset), "weights": weights, "device": "cpu", "num_workers": 0}
    command("exporting", EXPORT, trained, output_dir=str(out), format="onnx", **common)
    model = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert model.get_inputs()[0].shape == ["batch", 3, 64, 64] and model.get_outputs()[0].shape == ["batch", 1, 64, 64]
    assert json.loads(model.get_modelmeta().custom_metadata_map["model.json"])["sha256"] == sha256(weights)

    command("inferring", INFER, trained, output_dir=str(tmp_path / "masks"), **common)
    without = "import sys; sys.modules.update(dict.fromkeys(['torch', 'monai', 'bundle']))"
    script = f"{without}; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    by_shape = {}
    for path in sorted((dataset / "images").iterdir()):
        with Image.open(path) as image:
            by_shape[image.height > image.width] = path
    assert set(by_shape) == {True, False}
    for image in by_shape.values():
        words = [
            str(ROOT / "scripts" / "onnx_demo.py"),
            str(out / "model.onnx"),
            str(image),
            str(tmp_path / "mask.png"),
        ]
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, encoding="utf-8", cwd=tmp_path
        )
        assert done.returncode == 0 and "is marked" in done.stdout, done.stderr
        with (
            Image.open(tmp_path / "mask.png") as found,
            Image.open(tmp_path / "masks" / f"{image.stem}.png") as expected,
        ):
            assert found.size == expected.size and (np.asarray(found) == np.asarray(expected)).mean() > 0.995

    missing = subprocess.run(
        [sys.executable, words[0], words[1], "none.png", "m.png"], capture_output=True, encoding="utf-8"
    )
    assert missing.returncode == 1 and missing.stderr == "Error: none.png is not a file.\n"


def demo(python: list[str], *words: str | Path) -> subprocess.CompletedProcess:
    """Run the script of the demo."""
    command = [*python, str(ROOT / "scripts" / "onnx_demo.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def sha256(weights: str) -> str:
    return read_description(weights)["sha256"]


def test_a_base_sam_is_exported_after_a_check_on_real_images(
    kvasir: Path, root: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(INFER, root / "configs")
    images = str(kvasir / "images")
    knobs = {"dataset_dir": images, "weights": str(BASE), "device": "cpu", "num_workers": 0}
    command("exporting", EXPORT, root, format="torchscript", **knobs)
    said = capsys.readouterr().out
    assert "checked against PyTorch on images" in said and "batch of 3 images with different boxes" in said
    assert (root / "output" / "export" / "model.ts").is_file()


def test_what_cannot_be_exported_is_refused(trained: Path, dataset: Path, root: Path) -> None:
    weights = str(trained / "output" / "model.pt")
    common = {"dataset_dir": str(dataset), "device": "cpu"}
    assert "There are no weights" in refused("exporting", EXPORT, root, **common)
    assert "format is 'tflite'" in refused("exporting", EXPORT, trained, weights=weights, format="tflite", **common)
    said = refused("exporting", EXPORT, trained, weights=weights, prompt="expert", **common)
    assert "only an evaluation has them" in said


def test_small_artefacts_become_the_same_model_again(trained: Path, tmp_path: Path) -> None:
    output = trained / "output"
    command("merging", MERGE, trained, sam_checkpoint=str(BASE), output_dir=str(tmp_path))
    expected, found = load(output / "model.pt"), load(tmp_path / "model.pt")
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    descriptions = [read_description(folder / "model.pt") for folder in (output, tmp_path)]
    for description in descriptions:
        del description["sha256"]
    assert descriptions[0] == descriptions[1]
    sentence = refused("merging", MERGE, trained, sam_checkpoint=str(output / "model.pt"), output_dir=str(tmp_path))
    assert "trained on another base" in sentence


def stock_export(export: Callable[..., None], weights: str, path: Path) -> torch.Tensor:
    """Run one of MONAI's own commands; what the network says of `IMAGES`."""
    export(
        net_id="network_def", ckpt_file=weights, weights=weights, meta_file=META, config_file=INFER,
        input_shape=[1, 3, 64, 64], use_trace=True, filepath=str(path),
    )  # fmt: skip
    with torch.no_grad():
        return load_weights(build_network(weights), weights).eval()(IMAGES)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_monais_own_export_to_torchscript_works(trained: Path, tmp_path: Path) -> None:
    """It checks nothing, but who knows it from other bundles can use it, for any batch."""
    expected = stock_export(ckpt_export, str(trained / "output" / "model.pt"), tmp_path / "model.ts")
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(IMAGES), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_monais_own_export_to_onnx_works_for_one_image_at_a_time(trained: Path, tmp_path: Path) -> None:
    expected = stock_export(onnx_export, str(trained / "output" / "model.pt"), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": IMAGES[:1].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected[:1], rtol=0, atol=1e-3)
    assert session.get_inputs()[0].shape == [1, 3, 64, 64]
