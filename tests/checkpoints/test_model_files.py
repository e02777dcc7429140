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
"""The weights file and the base checkpoints: what is written, refused, kept, downloaded."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bundle.checkpoints import base_weights as checkpoints
from bundle.checkpoints import model_files as weights
from bundle.checkpoints.base_weights import OfficialCheckpoint, find_base_checkpoint
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError
from bundle.core.files import write_atomically
from bundle.data.datalists import stems_sha256
from bundle.sam.state_dict import read_state_dict
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.quality import QualityEstimate
from tests.networks import randomize


@pytest.fixture
def pair(toy: str, tmp_path: Path) -> Path:
    network = randomize(SamSP(sam=toy, prompt_threshold=0.4, trainable="lora"))
    return weights.write_pair(
        network.merged_state_dict(), weights.describe_network(network, note="x"), tmp_path / "a" / "model.pt"
    )


def test_a_pair_is_a_plain_state_dict_and_its_description(pair: Path) -> None:
    state = torch.load(pair, weights_only=True)
    assert "image_encoder.blocks.0.attn.qkv.weight" in state and not any("lora" in key for key in state)
    description = json.loads(pair.with_suffix(".json").read_text(encoding="utf-8"))
    assert description["sam"] == "toy" and description["image_size"] == 64 and description["note"] == "x"
    assert description["sha256"] == weights.sha256_of(pair)
    assert {path.name for path in pair.parent.iterdir()} == {"model.pt", "model.json"}


def test_a_network_is_built_as_described(pair: Path) -> None:
    network = weights.load_weights(build_network(str(pair), sam=None), str(pair))
    assert network.image_size == 64 and network.prompt_threshold == 0.4
    expected = torch.load(pair, weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    assert build_network(str(pair), prompt="none").prompt == "none"  # may be tried differently


def test_a_model_says_what_it_and_its_ancestors_were_trained_on(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lists = {name: [{"image": f"{name}_{number}.png"} for number in range(3)] for name in ("a", "b")}

    def trained(name: str, start: Path | None) -> Path:
        seen = {"train_images": 3, "train_stems_sha256": stems_sha256(lists[name])}
        behind = weights.read_lineage(str(start) if start else None)
        state = randomize(SamSP(sam=toy, trainable="lora"))
        described = weights.describe_network(state, trained_on=seen, started_from=behind)
        return weights.write_pair(state.merged_state_dict(), described, tmp_path / f"{len(behind)}_{name}" / "model.pt")

    first = trained("a", None)
    second = trained("b", first)
    third = trained("b", second)
    assert [step["sha256"] for step in weights.read_lineage(str(third))] == [
        weights.sha256_of(path) for path in (third, second, first)
    ]
    assert weights.read_lineage(str(first)) == [
        {"sha256": weights.sha256_of(first), "trained_on": weights.read_description(first)["trained_on"]}
    ]
    for path, name, words in (
        (first, "a", None),
        (first, "b", "was trained on 3 images"),
        (third, "a", "was trained on 3 images"),
        (third, "b", "comes from a network that was trained on 3 images"),
    ):
        weights.warn_of_another_split(str(path), lists[name])
        said = capsys.readouterr().out
        assert said.count("Warning") == (words is not None) and (words or "") in said
    weights.warn_of_another_split(str(path), [])  # a set to evaluate on alone
    assert capsys.readouterr().out == ""
    bare = tmp_path / "official.pt"
    torch.save({}, bare)
    assert weights.read_lineage(str(bare)) == [{"sha256": weights.sha256_of(bare)}]


CONTRADICTIONS = [({"sam": "vit_b"}, "sam is 'vit_b'.*'toy'"), ({"image_size": 128}, "image_size is 128.*64")]


@pytest.mark.parametrize(("settings", "words"), CONTRADICTIONS)
def test_a_contradicting_setting_is_an_error(pair: Path, settings: dict, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        build_network(str(pair), **settings)


def test_missing_changed_and_incomplete_files(pair: Path, toy: str) -> None:
    network = build_network(str(pair))
    with pytest.raises(BundleError, match=r"no weights at .*train first"):
        weights.load_weights(network, str(pair.with_name("other.pt")))
    torch.save({}, pair)
    with pytest.raises(BundleError, match="sha256 differ"):
        weights.load_weights(network, str(pair))
    pair.with_suffix(".json").write_text('{"sam": "toy"}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"model.json lacks image_size"):
        build_network(str(pair))
    pair.with_suffix(".json").unlink()
    with pytest.raises(BundleError, match=r"model.json is missing"):
        build_network(str(pair))


def test_an_estimate_of_the_dice_that_cannot_be_one(pair: Path) -> None:
    path = pair.with_suffix(".json")
    described = json.loads(path.read_text(encoding="utf-8"))
    estimate = QualityEstimate(0.0, (0.0,) * 4, (0.0, 0.0), (0.0,) * 3, (1.0,) * 3, 1.0).to_json()
    for kept, words in (
        ({**estimate, "limit": "far"}, "expected an estimate of the Dice"),
        ({"bias": 0}, "expected an estimate of the Dice"),
        (estimate, "has 3 channels as quality; expected [0-9]+, those of the embedding of toy"),
    ):
        path.write_text(json.dumps({**described, "quality": kept}), encoding="utf-8")
        with pytest.raises(BundleError, match=words):
            build_network(str(pair))


def test_training_starts_from_a_pair_at_another_size(pair: Path, toy: str) -> None:
    network = weights.start_from(SamSP(sam=toy, image_size=128, trainable="lora"), str(pair))
    base = torch.load(pair, weights_only=True)
    assert torch.equal(network.mask_decoder.iou_token.weight, base["mask_decoder.iou_token.weight"])
    with pytest.raises(BundleError, match="not a file"):
        weights.start_from(network, "nowhere.pt")


def test_publishing_keeps_the_pair_that_was_there(pair: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    weights.publish_pair(pair, models)
    first = weights.sha256_of(models / "model.pt")
    state = torch.load(pair, weights_only=True)
    state["mask_decoder.iou_token.weight"] += 1
    weights.write_pair(state, weights.read_description(pair), pair)
    weights.publish_pair(pair, models)

    assert weights.sha256_of(models / "model.pt") == weights.sha256_of(pair) != first
    assert [path.name for path in models.glob("*.pt")] == ["model.pt"]  # MONAI Label offers every one at this level
    kept = models / "previous" / f"model_{first[:12]}.pt"
    assert weights.sha256_of(kept) == first == weights.read_description(kept)["sha256"]


def test_weights_that_are_not_finite_are_not_written(toy: str, tmp_path: Path) -> None:
    state = SamSP(sam=toy, trainable="lora").merged_state_dict()
    state["mask_decoder.iou_token.weight"][0, 0] = float("nan")
    with pytest.raises(BundleError, match=r"iou_token.*not finite"):
        weights.write_pair(state, {}, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_the_same_weights_give_the_same_file(toy: str, tmp_path: Path) -> None:
    """Whatever its name and the process that writes it: a run can be checked by the sha256."""
    state = SamSP(toy, trainable="decoder").merged_state_dict()
    first, second = (weights.write_pair(state, {}, tmp_path / name) for name in ("model.pt", "again/other.pt"))
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")

    def fail(path: Path) -> None:
        path.write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_text(encoding="utf-8") == "old" and [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served on loopback in place of Meta's server."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(checkpoints, "BASE_URL", f"http://127.0.0.1:{running.server_port}/")
        yield folder
        running.shutdown()


def offer(monkeypatch: pytest.MonkeyPatch, file: str, sha256: str) -> None:
    monkeypatch.setattr(checkpoints, "OFFICIAL", {"vit_b": OfficialCheckpoint(file, sha256, 1)})


def test_a_missing_file_is_downloaded_once_and_checked(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(3)}, server / "sam.pth")
    offer(monkeypatch, "sam.pth", weights.sha256_of(server / "sam.pth"))
    path = find_base_checkpoint("vit_b", folder=tmp_path / "base")
    assert path == str(tmp_path / "base" / "sam.pth") and "a" in read_state_dict(path)

    (server / "sam.pth").unlink()  # a second look needs no server
    assert find_base_checkpoint("vit_b", folder=tmp_path / "base") == path


def test_a_download_with_another_sha256_is_refused(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(3)}, server / "sam.pth")
    offer(monkeypatch, "sam.pth", "0" * 64)
    with pytest.raises(BundleError, match="could not be downloaded"):
        find_base_checkpoint("vit_b", folder=tmp_path / "base")
    assert not list((tmp_path / "base").iterdir())


def test_offline_the_error_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "BASE_URL", "http://127.0.0.1:9/")  # the discard port: nothing answers
    with pytest.raises(BundleError) as caught:
        find_base_checkpoint("vit_b", folder=tmp_path / "base")
    for words in ("http://127.0.0.1:9/sam_vit_b_01ec64.pth", str(tmp_path / "base" / "sam_vit_b_01ec64.pth"), "375 MB"):
        assert words in str(caught.value)
    assert "--sam_checkpoint" in str(caught.value)


def test_official_table_is_complete() -> None:
    assert set(checkpoints.OFFICIAL) >= {"vit_b", "vit_l", "vit_h", "sam2_hiera_tiny", "sam2_hiera_large"}
    assert all(len(official.sha256) == 64 for official in checkpoints.OFFICIAL.values())


def test_a_network_may_start_from_nothing(tmp_path: Path) -> None:
    assert find_base_checkpoint("vit_tiny", "random", tmp_path) is None
    assert find_base_checkpoint("vit_b", "random", tmp_path) is None and not list(tmp_path.iterdir())


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("code in a weights file",))


def test_only_plain_state_dicts_are_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(BundleError, match="cannot be read as weights"):
        read_state_dict(tmp_path / "evil.pth")
    assert "code" not in capsys.readouterr().out
    (tmp_path / "text.pth").write_text("hello", encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be read as weights"):
        read_state_dict(tmp_path / "text.pth")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "nested.pth")
    with pytest.raises(BundleError, match="plain state dict"):
        read_state_dict(tmp_path / "nested.pth")
    with pytest.raises(BundleError, match=r"sam_checkpoint 'x.pth' is not a file"):
        find_base_checkpoint("vit_b", "x.pth")
