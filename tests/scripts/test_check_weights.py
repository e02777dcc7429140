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
"""The check of real weights finds ours equal to each family's reference, and says so where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.sam import registry
from scripts import check_weights, references
from tests.sam2 import to_official, toy_network


@pytest.mark.parametrize("sam", ["toy", "toy2", pytest.param("lite_medsam", marks=pytest.mark.slow)])
def test_every_family_is_equal_to_its_reference(
    sam: str, toy: str, toy2: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sam == "lite_medsam":
        pytest.importorskip("timm", reason="timm is not installed, which the reference needs")
    monkeypatch.setattr(check_weights, "SPECS", registry.SPECS)
    checkpoint = "random"
    if sam == "toy2":
        checkpoint = str(tmp_path / "official.pt")
        torch.save({"model": to_official(toy_network().state_dict())}, checkpoint)
    check_weights.main(["--sam", sam, "--sam_checkpoint", checkpoint, "--image_size", "64"])
    said = capsys.readouterr().out
    assert f"equal: {sam}, " in said and "no prompt" in said and "send this line in" in said


def test_a_difference_is_an_error(toy2: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_weights, "SPECS", registry.SPECS)
    reference = references.run_sam2

    def other(network: object, image: torch.Tensor, box: torch.Tensor) -> references.Masks:
        return reference(network, image + 0.5, box)  # type: ignore[arg-type]

    monkeypatch.setattr(check_weights, "REFERENCES", {"sam2": ("another", other)})
    torch.manual_seed(0)
    with pytest.raises(SystemExit) as caught:
        check_weights.main(["--sam", toy2, "--sam_checkpoint", "random", "--image_size", "64"])
    assert caught.value.code == 1 and "DIFFERENT: toy2" in capsys.readouterr().out


def test_every_family_has_a_reference() -> None:
    assert {spec.family for spec in registry.SPECS.values()} == set(references.REFERENCES)
