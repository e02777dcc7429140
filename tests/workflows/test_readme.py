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
"""The examples of the README, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.core.provenance import MARKER
from bundle.procedural.demo_set import make_demo
from tests.blocks import write_blocks
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["--epochs", "1", "--image_size", "64", "--num_workers", "0", "--device", "cpu"]


def examples(marker: str) -> list[str]:
    """Code blocks that follow ``<!-- marker -->``."""
    return re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the commands need, with the datasets that the README speaks of."""
    copy = tmp_path / "a copy"  # a path with a space
    for folder in ("bundle", "configs", "models"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    make_demo(copy / "my_polyps", count=14, seed=5)
    (copy / "my_polyps" / MARKER).unlink()
    write_blocks(copy / "my_volumes", count=10)
    stems = sorted(path.stem for path in (copy / "my_polyps" / "images").iterdir())
    (copy / "test.txt").write_text("\n".join(stems[:2]), encoding="utf-8")
    first = min((copy / "my_polyps" / "images").iterdir()).name
    (copy / "boxes.json").write_text(json.dumps({first: [40, 12, 95, 60]}), encoding="utf-8")
    points = {stems[0]: {"foreground": [[52, 30]], "background": [[9, 9]]}, stems[1]: {"foreground": [[30, 44]]}}
    (copy / "points.json").write_text(json.dumps(points), encoding="utf-8")
    (copy / "videos.csv").write_text(
        "stem,video\n" + "\n".join(f"{s},{i // 2}" for i, s in enumerate(stems)), encoding="utf-8"
    )
    return copy


def shortened(command: str) -> list[str]:
    """The words of a command; a training is cut to an epoch at a small size, unless it says otherwise itself."""
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    if "training" in words and "--resume" not in words:
        words += [word for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if pair[0] not in words for word in pair]
    elif "--resume" in words:
        words[words.index("--epochs") + 1] = "2"
        words += [*SMALL[2:]]
    return [sys.executable, *words[1:]]


def test_every_command_of_the_readme_runs(checkout: Path) -> None:
    commands = [line for block in examples("run") for line in block.strip().splitlines()]
    assert len(commands) >= 7
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    for command in commands:
        done = subprocess.run(
            shortened(command), cwd=checkout, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert "Error" not in done.stderr, command
    for name in ("models/model.pt", "models/previous", "output/evaluation/panels/panels.png", "output/masks"):
        assert (checkout / name).exists(), name
    assert len(list((checkout / "output" / "masks").glob("*.nii.gz"))) == 10


def test_the_python_example_runs() -> None:
    (block,) = examples("python")
    names: dict = {}
    exec(block, names)
    assert names["logits"].shape == (2, 1, 256, 256) and names["out"].boxes_xyxy.shape == (2, 1, 4)
    assert not any("lora" in key for key in names["net"].state_dict())


def test_the_table_of_knobs_is_that_of_the_config() -> None:
    """Each knob of train.json stands in the README, and no other."""
    config = json.loads((ROOT / "configs" / "train.json").read_text(encoding="utf-8"))
    first = list(config).index("dataset_dir")
    knobs = set(list(config)[first : list(config).index("torch_device")])
    table = README.split("## Knobs")[1].split("\n## ")[0]
    documented = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert documented == knobs
