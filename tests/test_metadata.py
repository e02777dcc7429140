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
"""The metadata: what a bundle must say, and that the network is what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from jsonschema import Draft201909Validator
from monai.bundle import download_large_files, verify_metadata, verify_net_in_out

from bundle.checkpoints.base_weights import BASE_URL, OFFICIAL
from tests.conftest import ROOT

METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
SCHEMA = ROOT.parent / "shared" / "notes" / "meta_schema_20240725.json"


def test_metadata_fits_its_schema() -> None:
    if not SCHEMA.is_file():
        pytest.skip(f"needs the schema in {SCHEMA}")
    Draft201909Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(METADATA)


def test_metadata_agrees_with_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = METADATA["version"]
    assert f'version = "{version}"' in project and f"version: {version}\n" in citation
    assert version in METADATA["changelog"]
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    said = {**METADATA["required_packages_version"], "monai": METADATA["monai_version"]}
    said |= {"torch": METADATA["pytorch_version"], "numpy": METADATA["numpy_version"]}
    assert {name: pins[name] for name in said} == said


def test_network_is_what_the_metadata_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's own check, without weights: it reads ``network_def`` of the inference config."""
    monkeypatch.chdir(ROOT)
    verify_net_in_out(
        net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json", device="cpu"
    )
    output = METADATA["network_data_format"]["outputs"]["pred"]
    size = json.loads((ROOT / "models" / "model.json").read_text(encoding="utf-8"))["image_size"]
    assert output["num_channels"] == 1 and output["spatial_shape"] == [size, size]


def test_monai_verifies_the_metadata(tmp_path: Path) -> None:
    """``python -m monai.bundle verify_metadata``, which downloads nothing where the schema is there already."""
    if not SCHEMA.is_file():
        pytest.skip(f"needs the schema in {SCHEMA}")
    shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(ROOT / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))


def test_large_files_are_fetched_into_the_bundle_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MONAI's own command, with its download caught; the sum is the one that a training checks."""
    fetched: list[dict] = []
    monkeypatch.setattr("monai.bundle.scripts.download_url", lambda **arguments: fetched.append(arguments))
    shutil.copy(ROOT / "large_files.yml", tmp_path)
    download_large_files(bundle_path=str(tmp_path))
    by_file = {official.file: official for official in OFFICIAL.values()}
    for arguments in fetched:
        path = Path(arguments["filepath"])
        assert path.parent == tmp_path.resolve() / "models" / "base"
        assert (arguments["hash_type"], arguments["hash_val"]) == ("sha256", by_file[path.name].sha256)
        assert arguments["url"] == BASE_URL + path.name
    assert fetched


def test_no_file_of_the_repository_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    large = [name for name in listed.split("\0") if (ROOT / name).is_file() and (ROOT / name).stat().st_size > 25e6]
    assert large == []


def test_the_model_card_has_the_sections_of_the_zoo() -> None:
    """And ASCII alone: MONAI reads it in the encoding of the user's locale when it pushes to the hub."""
    card = (ROOT / "docs" / "README.md").read_text(encoding="ascii")
    sections = (
        "Authors", "Tags", "Model Description", "Intended Use", "Data", "Performance", "Additional Usage Steps",
        "System Configuration", "Limitations", "Citation Info", "References", "License",
    )  # fmt: skip
    missing = [name for name in sections if f"\n## {name}\n" not in card]
    assert card.startswith("# ") and "\n### Preprocessing\n" in card and missing == []
