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
"""The zip: what is in it, that a stranger can use it, and that the hub takes it and gives it back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from scripts import make_bundle
from tests import processes
from tests.conftest import ROOT
from tests.workflows.hub import local_hub

STRANGER = Path(__file__).with_name("stranger.py")
HUB_CLIENT = Path(__file__).with_name("hub_client.py")
VERSION = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make bundle`` writes."""
    folder = tmp_path_factory.mktemp("dist")
    make_bundle.main(["--output_dir", str(folder)])
    return folder / f"{make_bundle.NAME}_v{VERSION}.zip"


@pytest.fixture
def unzipped(archive: Path, tmp_path: Path) -> Path:
    """The bundle in a path with a space."""
    zipfile.ZipFile(archive).extractall(tmp_path / "a place")
    return tmp_path / "a place" / make_bundle.NAME


def python(run: Callable[..., subprocess.CompletedProcess], *words: str | Path, cwd: Path, **environment: str) -> str:
    """Run Python in a process that knows nothing of this checkout; what it printed."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    command = [sys.executable, *map(str, words)]
    done = run(command, cwd=cwd, env={**clean, **environment}, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_what_is_in_it(archive: Path) -> None:
    names = zipfile.ZipFile(archive).namelist()
    inside = {name.removeprefix(f"{make_bundle.NAME}/") for name in names}
    assert all(name.startswith(f"{make_bundle.NAME}/") and ".." not in name for name in names)
    assert {"LICENSE", "configs/metadata.json", "docs/README.md", "docs/data_license.txt", "large_files.yml"} <= inside
    assert {"models/base/sam_vit_tiny.pt", "scripts/onnx_demo.py", "bundle/sam_sp/network.py"} <= inside
    assert not any(
        name.startswith(("tests/", ".", "output/", "dist/", "data/", *make_bundle.LEFT_OUT)) for name in inside
    )
    assert not any("__pycache__" in name or name.endswith((".pth", ".pyc")) for name in inside)


def test_the_sums_in_it_are_those_of_its_files(unzipped: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--quiet", make_bundle.SUMS], cwd=unzipped, capture_output=True)
    assert done.returncode == 0, done.stdout
    listed = [line.split("  ", 1)[1] for line in (unzipped / make_bundle.SUMS).read_text(encoding="utf-8").splitlines()]
    found = sorted(path.relative_to(unzipped).as_posix() for path in unzipped.rglob("*") if path.is_file())
    assert sorted([*listed, make_bundle.SUMS]) == found and "SECURITY.md" in listed


def test_no_link_goes_in_and_nothing_of_the_bundle_unpacks_archives(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "1"}', encoding="utf-8")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    with pytest.raises(BundleError, match=r"README\.md is a link"):
        make_bundle.make_bundle(tmp_path, tmp_path / "dist")
    for path in [*(ROOT / "bundle").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("extractall", "unpack_archive", "tarfile", ".extract(")), path


def test_configs_are_formatted_as_the_zoo_wants(unzipped: Path) -> None:
    """Its pre-commit hook is pretty-format-json; in the repository short lists stand on a line."""
    configs = sorted((unzipped / "configs").glob("*.json"))
    assert {path.name for path in configs} == {path.name for path in (ROOT / "configs").glob("*.json")}
    for path in configs:
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", path.name
        assert json.loads(text) == json.loads((ROOT / "configs" / path.name).read_text(encoding="utf-8"))


def test_the_same_files_give_the_same_zip(archive: Path, tmp_path: Path) -> None:
    assert sha256_of(make_bundle.make_bundle(ROOT, tmp_path)) == sha256_of(archive)


def test_a_model_goes_in_with_its_description_and_no_other(tmp_path: Path) -> None:
    """A checkout of its own: the trained pair is ignored by git, yet belongs to the bundle, unless it was changed."""
    root = tmp_path / "checkout"
    (root / "models").mkdir(parents=True)
    (root / "configs").mkdir()
    for name in ("train.json", "metadata.json"):
        shutil.copy(ROOT / "configs" / name, root / "configs")
    (root / ".gitignore").write_text("/models/*\n", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    model = root / "models" / "model.pt"
    torch.save({"weight": torch.zeros(3)}, model)
    described = {
        "sam": "toy", "image_size": 64, "num_classes": 1, "exclusive": True, "prompt": "self", "prompt_threshold": 0.5,
        "prompt_margin": 0, "labels": {"0": "background", "1": "tool"}, "sha256": sha256_of(model),
    }  # fmt: skip
    model.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    (root / "models" / "other.pt").write_bytes(b"")
    written = make_bundle.make_bundle(root, root / "dist")
    assert written.name == f"polyp_sam_sp_segmentation_v{VERSION}.zip"
    assert make_bundle.bundled_files(root) == [
        "configs/metadata.json", "configs/train.json", "models/model.json", "models/model.pt",
    ]  # fmt: skip
    with zipfile.ZipFile(written) as zipped:
        train, metadata = (
            json.loads(zipped.read(f"{make_bundle.NAME}/configs/{name}.json")) for name in ("train", "metadata")
        )
    assert (train["sam"], train["labels"]) == ("toy", {"1": "tool"})
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "tool"}
    torch.save({"weight": torch.ones(3)}, model)
    with pytest.raises(BundleError, match="is not the file that"):
        make_bundle.make_bundle(root, root / "dist")


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    """The ZIP that a hosting site offers has no git; what runs leave in it does not belong to the bundle."""
    names = make_bundle.bundled_files(ROOT)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes() if name.endswith(".json") else b"")
    left = (
        "bundle/__pycache__/a.pyc", "models/previous/model_1.pt", "models/base/sam_vit_b_01ec64.pth", "output/x.pt",
        "scripts/experiments/a.py", "docs/.hidden", "tests/test_a.py",
    )  # fmt: skip
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert make_bundle.bundled_files(tmp_path) == names


def test_a_stranger_can_use_it_beside_another_bundle(unzipped: Path, dataset: Path, tmp_path: Path) -> None:
    """Train, evaluate, infer and export from another directory, and a second bundle keeps its own `scripts`."""
    other = tmp_path / "other"
    (other / "scripts").mkdir(parents=True)
    (other / "configs").mkdir()
    (other / "scripts" / "__init__.py").write_text("WHO = 'the other bundle'\n", encoding="utf-8")
    config = {"imports": ["$import scripts"], "bundle_root": "", "run": ["$print(scripts.WHO)"]}
    (other / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = python(processes.run, STRANGER, unzipped, dataset, other, cwd=elsewhere)
    assert said.count("the other bundle") == 2 and said.endswith("a stranger is content\n")
    for name in (
        "models/model.pt",
        "models/model.json",
        "output/evaluation/val_dice_raw.csv",
        "output/export/model.ts",
    ):
        assert (unzipped / name).is_file(), name
    assert len(list((unzipped / "output" / "masks").glob("*.png"))) == 14
    assert not list(elsewhere.iterdir())


def test_the_hub_takes_it_and_gives_it_back(unzipped: Path, tmp_path: Path) -> None:
    """The two commands of the docs against a stand-in of the hub: MONAI's push, and its download."""
    before = {path.relative_to(unzipped).as_posix(): sha256_of(path) for path in unzipped.rglob("*") if path.is_file()}
    with local_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache")}
        push = [
            "fire", "monai.bundle", "push_to_hf_hub", "--repo", "somebody/polyps", "--name", make_bundle.NAME,
            "--bundle_dir", str(unzipped.parent), "--token", "hf_stand_in", "--version", VERSION,
            "--tag_as_latest_version", "True",
        ]  # fmt: skip
        download = [
            "monai.bundle", "download", "--name", make_bundle.NAME, "--source", "huggingface_hub", "--repo",
            "somebody/polyps", "--bundle_dir", str(tmp_path / "got"),
        ]  # fmt: skip
        python(subprocess.run, HUB_CLIENT, json.dumps([push, download]), cwd=tmp_path, **environment)
        assert [(one["organization"], one["name"], one["visibility"]) for one in hub.repositories] == [
            ("somebody", "polyps", "private")
        ]
        assert set(hub.tags) == {VERSION, "latest_version"}
        card = hub.files["README.md"].decode()
        assert card.startswith("---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: apache-2.0\n---\n# ")
        pushed = set(hub.files)
    got = tmp_path / "got" / make_bundle.NAME
    after = {name: sha256_of(got / name) for name in before if name != "README.md"}
    assert pushed == set(before) and after == {name: value for name, value in before.items() if name != "README.md"}
