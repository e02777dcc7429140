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
"""The commands and the Python of README and guides, run as they stand there, at a tiny size.

A block marked ``run`` is executed in this process, line after line, in a copy of what the commands need. Making and
filling an environment is left out: that of the tests has all packages. What is marked otherwise is checked by
``tests/docs/test_command_lines.py`` only.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fire
import numpy as np
import pytest
from monai.bundle import run
from PIL import Image

from bundle.core.provenance import MARKER
from bundle.procedural.demo_set import make_demo
from tests.blocks import write_blocks
from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, name

CPU = {"num_workers": "0", "device": "cpu"}
# Unless a command, or a file that it mixes in, says otherwise.
TINY = {
    "training": {"epochs": "1", "image_size": "64", "sam_checkpoint": "random", **CPU},
    "pretraining": {"image_size": "64", "val_scenes": "2", "batch_size": "2", "prompts": "4", **CPU},
    "evaluating": CPU,
    "inferring": CPU,
    "exporting": CPU,
    "evaluating_prompts": {"test_scenes": "2", "pictures": "1", **CPU},
    "merging": {},
}
# In place of what a command says.
SMALLER = {"epochs": {"60": "2", "4": "1"}, "scenes": {"10000": "4"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets, lists and user prompts that the pages speak of."""
    folder = tmp_path_factory.mktemp("documentation")
    polyps = make_demo(folder / "my_polyps", count=14, seed=5)
    (polyps / MARKER).unlink()
    first, second = sorted((polyps / "images").iterdir())[:2]
    for image, target in ((first, "a.jpg"), (second, "b.png")):
        mask = polyps / "masks" / f"{image.stem}.png"
        mask.rename(mask.with_stem(Path(target).stem))
        Image.open(image).convert("RGB").save(image.with_name(target))
        image.unlink()
    stems = sorted(path.stem for path in (polyps / "images").iterdir())
    (folder / "test.txt").write_text("\n".join(stems[2:4]), encoding="utf-8")
    rows = [f"{stem},{number // 2}" for number, stem in enumerate(stems)]
    (folder / "videos.csv").write_text("\n".join(["stem,video", *rows]), encoding="utf-8")
    tools = shutil.copytree(polyps, folder / "my_tools")
    for mask in (tools / "masks").iterdir():
        values = np.array(Image.open(mask).convert("L")) > 127
        classes = values.astype(np.uint8)
        classes[: len(values) // 2] *= 2  # the upper half is of the second class
        Image.fromarray(classes).save(mask)
    write_blocks(folder / "my_volumes", count=10)
    (folder / "boxes.json").write_text('{"a.jpg": [40, 12, 95, 60]}', encoding="utf-8")
    points = {
        "a.jpg": {"foreground": [[52, 30]], "background": [[90, 20], [94, 55]]},
        "b.png": {"foreground": [[30, 44]]},
    }
    (folder / "points.json").write_text(json.dumps(points), encoding="utf-8")
    return folder


@pytest.fixture
def checkout(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with what the commands need, in a path with a space."""
    copy = shutil.copytree(data, tmp_path / "a copy")
    shutil.copytree(ROOT / "configs", copy / "configs")
    shutil.copytree(ROOT / "models", copy / "models", ignore=shutil.ignore_patterns("previous", "*.pth"))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield copy


def lines(page: Path, marker: str) -> list[str]:
    """Return the commands of a page in blocks with this marker."""
    return [line for block in blocks(page) if block.marker == marker for line in block.lines]


def execute(line: str) -> None:
    """Run one line of a page."""
    words = shlex.split(line)
    if words[:2] == ["pip", "install"] or words[:3] == ["python", "-m", "venv"] or words[0] == ".":
        return
    if words[0] == "echo":
        subprocess.run(line, shell=True, check=True)
    elif words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[2] in ("scripts.segment", "scripts.report"):
        importlib.import_module(words[2]).main(words[3:])
    else:
        assert words[:4] == ["python", "-m", "monai.bundle", "run"], line
        fire.Fire({"run": run}, command=["run", *shortened(words[4:])])


def shortened(words: list[str]) -> list[str]:
    """Return the words of a command at a tiny size."""
    run_id, options = words[0], dict(zip(words[1::2], words[2::2], strict=True))
    options = {key: SMALLER.get(key[2:], {}).get(value, value) for key, value in options.items()}
    tiny = {f"--{key}": value for key, value in TINY[run_id].items()}
    if "my_settings.json" in options["--config_file"]:
        tiny = {key: value for key, value in tiny.items() if key not in ("--epochs", "--image_size")}
    if options.get("--trainable") == "lora":
        del tiny["--sam_checkpoint"]  # the adapters are merged with this base afterwards
    return [run_id, *(word for pair in (tiny | options).items() for word in pair)]


def with_marker(marker: str) -> list[Path]:
    return [page for page in PAGES if lines(page, marker)]


@pytest.mark.parametrize("page", with_marker("run"), ids=name)
def test_the_commands_of_a_page_run(page: Path, checkout: Path) -> None:
    for line in lines(page, "run"):
        execute(line)
    for file in RESULTS.get(name(page), []):
        assert list(checkout.glob(file)), file


# What the commands of a page leave behind.
RESULTS = {
    "README.md": ["output/masks/a.png", "models/previous/model_*.pt", "output/evaluation/panels/panels.png"],
    "docs/guides/segment.md": ["output/masks/overlays/b.png", "output/masks/report.html"],
    "docs/guides/train.md": ["output/previous/last.pt", "output/last.pt", "models/model.json"],
    "docs/guides/evaluate.md": ["output/evaluation/measures.json", "output/unet/model.pt"],
    "docs/guides/correct.md": ["output/masks/b.png", "models/previous/model_*.pt"],
    "docs/guides/classes.md": ["models/model.json"],
    "docs/guides/volumes.md": ["output/masks/*.nii.gz", "output/evaluation/val_dice_raw.csv"],
    "docs/guides/fine_tune.md": ["output/lora/adapter/adapter_config.json", "output/merged/model.pt"],
    "docs/guides/pretrain.md": ["output/pretrain/mine/sam_vit_tiny.pt", "output/prompt_evaluation/*.json"],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", with_marker("run: slow"), ids=name)
def test_the_longer_commands_of_a_page_run(page: Path, checkout: Path) -> None:
    for line in lines(page, "run: slow"):
        execute(line)
    for file in SLOW_RESULTS.get(name(page), []):
        assert (checkout / file).is_file(), file


SLOW_RESULTS = {"docs/guides/export.md": ["output/export/model.onnx", "output/export/model_int8.onnx"]}


@pytest.mark.parametrize("page", with_marker("python"), ids=name)
def test_the_python_of_a_page_runs(page: Path, checkout: Path) -> None:
    for block in blocks(page):
        if block.marker == "python":
            names: dict = {}
            exec(block.text, names)
            found = names.get("logits")
            shipped = json.loads((ROOT / "models" / "model.json").read_text(encoding="utf-8"))["image_size"]
            assert found is None or found.shape[-1] in (16, 256, shipped)


def test_the_python_of_the_readme_gives_what_its_comments_say() -> None:
    (text,) = [block.text for block in blocks(ROOT / "README.md") if block.marker == "python"]
    names: dict = {}
    exec(text, names)
    assert names["logits"].shape == (2, 1, 256, 256) and names["out"].boxes_xyxy.shape == (2, 1, 4)
    assert names["out"].initial.shape == names["out"].refined.shape == (2, 1, 64, 64)
    assert not any("lora" in key for key in names["net"].state_dict())
    assert len([line for line in text.splitlines() if line.strip()]) <= 8
