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
"""What `scripts.label` lays out: which weights, which configs; and what it refuses before a server is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.volume_settings import DEFAULTS
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of
from bundle.monai_label import server as label_server
from bundle.monai_label.app_folder import add_model
from bundle.sam_sp.network import SamSP
from tests.conftest import ROOT

VOLUME = dict(DEFAULTS)


def pair(folder: Path, name: str = "model.pt", labels: tuple[str, ...] = ("polyp",), **described: Any) -> Path:
    network = SamSP(sam="toy", image_size=64, num_classes=len(labels), exclusive=True, trainable="decoder")
    names = {"0": "background", **{str(number): label for number, label in enumerate(labels, start=1)}}
    text = {**describe_network(network, labels=names, version="test"), **described}
    return write_pair(network.merged_state_dict(), text, folder / name)


def merged(app: Path, model: str, file: str) -> dict[str, Any]:
    return json.loads((app / "model" / model / "configs" / file).read_text(encoding="utf-8"))


def test_a_copy_of_the_bundle_with_the_classes_of_the_model(toy: str, tmp_path: Path) -> None:
    app, source = tmp_path / "app", pair(tmp_path, labels=("Polyp", "tool"))
    model = add_model(app, ROOT, str(source))
    assert (model.name, dict(model.labels)) == ("sam_sp_2d", {"1": "Polyp", "2": "tool"})
    folder = app / "model" / model.name
    assert sorted(path.name for path in (folder / "configs").iterdir()) == [
        "inference.json", "logging.conf", "metadata.json", "train.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (folder / "models").glob("*.pt")) == ["model.pt"]  # a server offers every one
    metadata = merged(app, model.name, "metadata.json")["network_data_format"]
    assert metadata["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "Polyp", "2": "tool"}
    assert len(metadata["inputs"]["image"]["spatial_shape"]) == 2
    train = merged(app, model.name, "train.json")
    assert train["labels"] == {"1": "Polyp", "2": "tool"} and (train["sam"], train["image_size"]) == ("toy", 64)
    parser = ConfigParser(merged(app, model.name, "inference.json") | {"bundle_root": str(folder)})
    names = [type(transform).__name__ for transform in parser.get_parsed_content("postprocessing").transforms]
    # the server leaves out what saves masks, and instances are off
    assert names == ["KeepScoresd", "Invertd", "MarkClassesd", "SaveImageInstancesd", "SaveImaged", "ServerResultd"]


def test_a_volume_model(toy: str, tmp_path: Path) -> None:
    model = add_model(tmp_path / "app", ROOT, str(pair(tmp_path, volume=VOLUME)))
    assert model.name == "sam_sp_volume"
    metadata = merged(tmp_path / "app", model.name, "metadata.json")["network_data_format"]["inputs"]["image"]
    assert (metadata["num_channels"], len(metadata["spatial_shape"])) == (1, 3)
    served = tmp_path / "app" / "model" / model.name / "configs" / "inference.json"
    assert json.loads(served.read_text()) == json.loads((ROOT / "configs" / "inference.json").read_text())


def test_what_was_retrained_stays_until_somebody_says_otherwise(toy: str, tmp_path: Path) -> None:
    app, first = tmp_path / "app", pair(tmp_path / "first")
    weights = app / "model" / "sam_sp_2d" / "models" / "model.pt"
    add_model(app, ROOT, str(first))
    assert sha256_of(weights) == sha256_of(first)
    second = pair(tmp_path / "second", prompt_threshold=0.4)
    SamSP(sam="toy", image_size=64, trainable="lora")  # moves the random numbers on
    third = pair(tmp_path / "third")
    assert sha256_of(second) != sha256_of(first) != sha256_of(third)

    assert "a copy of" in add_model(app, ROOT, str(second)).weights  # nobody trained the first here
    pair(weights.parent)  # as a training in the server does
    retrained = sha256_of(weights)
    assert "goes on with what was trained" in add_model(app, ROOT, str(second)).weights
    said = add_model(app, ROOT, str(third)).weights
    assert sha256_of(weights) == retrained and "--fresh" in said and str(third) in said
    add_model(app, ROOT, str(third), fresh=True)
    assert sha256_of(weights) == sha256_of(third)
    assert (weights.parent / "previous" / f"model_{retrained[:12]}.pt").is_file()


def test_from_zero_with_names_of_classes(tmp_path: Path) -> None:
    model = add_model(tmp_path, ROOT, "2d", ["polyp", "tool"])
    assert "UNTRAINED" in model.weights and dict(model.labels) == {"1": "polyp", "2": "tool"}
    assert "UNTRAINED" in merged(tmp_path, model.name, "metadata.json")["description"]
    assert dict(add_model(tmp_path, ROOT, "2d", ["polyp", "tool"]).labels) == dict(model.labels)
    with pytest.raises(BundleError, match=r"--labels are polyp, but the model in .* has polyp, tool: add --fresh"):
        add_model(tmp_path, ROOT, "2d", ["polyp"])
    volume = add_model(tmp_path, ROOT, "volume", ["lesion"])
    described = json.loads((tmp_path / "model" / volume.name / "models" / "model.json").read_text(encoding="utf-8"))
    assert described["volume"] == DEFAULTS and described["trained_on"]["train_images"] == 0


def test_what_is_refused(toy: str, tmp_path: Path) -> None:
    root = tmp_path / "root"  # a bundle without a model
    root.mkdir()
    with pytest.raises(BundleError, match=r"no trained 2d model at .*model\.pt: train one .*--labels NAME"):
        add_model(tmp_path / "app", root, "2d")
    with pytest.raises(BundleError, match="which is no file; expected 2d, volume or the path"):
        add_model(tmp_path / "app", ROOT, "nothing.pt")
    with pytest.raises(BundleError, match="describes a SAM to start from"):
        add_model(tmp_path / "app", ROOT, str(ROOT / "models" / "base" / "sam_vit_tiny.pt"))
    overlapping = pair(tmp_path, labels=("a", "b"), exclusive=False)
    with pytest.raises(BundleError, match="holds one class a pixel"):
        add_model(tmp_path / "other", ROOT, str(overlapping))


def test_what_is_not_installed_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"monailabel": "0.8.4", "pydicom": "3.0.2", "uvicorn": None}
    found = dict.fromkeys(label_server._required(ROOT), "1") | {"pydicom-seg": "0.4.1", "dicomweb-client": "0.59.3"}
    monkeypatch.setattr(label_server, "_version", lambda name: {**found, **versions}[name])
    with pytest.raises(BundleError) as caught:
        label_server.require_installed(ROOT)
    assert str(caught.value) == (
        "This Python has not what a MONAI Label server needs (pydicom is 3.0.2, not 2.4.4, uvicorn is missing, "
        "monailabel is 0.8.4, not 0.8.5): make setup-label, and start with .venv-label/bin/python -m scripts.label."
    )


def test_an_offline_start_has_all_flags(tmp_path: Path) -> None:
    server = label_server.LabelServer(tmp_path, ["a", "b"], "studies", "MR", port=8123)
    command = " ".join(server.command())
    assert "--conf models a,b --conf zoo_source local --conf sam2 false" in command and "--host 127.0.0.1" in command
    environment = server.environment()
    assert json.loads(environment["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"]) == {"Modality": "MR"}
    assert {"*.jpeg", "*.PNG", "*.nii.gz"} <= set(json.loads(environment["MONAI_LABEL_DATASTORE_FILE_EXT"]))
