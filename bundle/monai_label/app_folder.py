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
"""The app folder of a MONAI Label server: a copy of this bundle for each model, with the configs of the server."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from bundle.checkpoints.base_weights import find_base_checkpoint
from bundle.checkpoints.model_configs import model_metadata, read_metadata, train_config
from bundle.checkpoints.model_files import describe_network, publish_pair, write_pair
from bundle.checkpoints.model_json import (
    description_path,
    read_class_labels,
    read_description,
    require_matching_sha256,
)
from bundle.checkpoints.volume_settings import volume_settings
from bundle.core.errors import BundleError
from bundle.core.files import sha256_of, write_text
from bundle.sam_sp.network import SamSP

KINDS = ("2d", "volume")
SAMPLE_APP = Path("monailabel") / "sample-apps" / "monaibundle"
# File with the sha256 that a model in the app folder was copied from, which shows whether it was retrained there.
ORIGIN = "origin.json"
HOW_TO_TRAIN = {
    "2d": "python -m monai.bundle run training --config_file configs/train.json --dataset_dir FOLDER",
    "volume": "python -m monai.bundle run training --config_file \"['configs/train.json','configs/volume.json']\" "
    "--dataset_dir FOLDER",
}


@dataclass(frozen=True)
class ServedModel:
    """A model in the app folder.

    Attributes:
        name: its name in the server and its clients.
        labels: names of its classes, from "1".
        weights: the origin of its weights, in words.
    """

    name: str
    labels: Mapping[str, str]
    weights: str


def lay_out_app(app: Path, root: Path) -> None:
    """Copy the server's own app for bundles into the folder, with `bundle.monai_label.app` as its ``main.py``.

    The guard, which the server runs behind, lies beside it.

    Raises:
        BundleError: the installed server has no such app.
    """
    sample = Path(sys.prefix) / SAMPLE_APP
    if not sample.is_dir():
        raise BundleError(f"{sample} is missing, which monailabel brings: install it again (make setup-label).")
    shutil.copytree(sample, app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "model", "logs"))
    (app / "main.py").replace(app / "bundle_main.py")
    for name, copy in (("app", "main"), ("guard", "guard"), ("guarded_server", "guarded_server")):
        shutil.copyfile(root / "bundle" / "monai_label" / f"{name}.py", app / f"{copy}.py")


def add_model(
    app: Path, root: Path, model: str, labels: Sequence[str] | None = None, fresh: bool = False
) -> ServedModel:
    """Put a copy of the bundle with one model into the app folder, and keep a model that was retrained there.

    Args:
        app: the app folder.
        root: the bundle to copy.
        model: "2d" or "volume", for the model of that kind in ``models`` of the bundle, or the path of a ``model.pt``.
        labels: names of the classes of an untrained model to start from, instead of a trained one.
        fresh: set a model that was retrained in the app folder aside, and start again.

    Raises:
        BundleError: there is no such model, its labels differ, or a server cannot use it.
    """
    source = None if labels else _find_source(model, root)
    kind = model if model in KINDS else _kind_of(Path(model))
    folder = app / "model" / f"sam_sp_{kind}"
    weights = folder / "models" / "model.pt"
    if weights.is_file() and not fresh:
        origin = _keep_or_replace(weights, source, labels)
    elif source is not None:
        origin = _start_from(source, weights)
    elif labels:
        origin = _start_untrained(kind, labels, root, weights)
    else:
        raise BundleError(
            f"There is no trained {kind} model at {root / 'models' / 'model.pt'}: train one ({HOW_TO_TRAIN[kind]}), "
            "name one with --model PATH, or start from zero with --labels NAME, an untrained model that learns from "
            "what you annotate."
        )
    _require_servable(weights)
    _copy_bundle(root, folder)
    _write_configs(kind, root, folder, weights)
    return ServedModel(folder.name, read_class_labels(str(weights)), origin)


# --- weights -----------------------------------------------------------------------------------------------------


def _kind_of(weights: Path) -> str:
    if not weights.is_file():
        raise BundleError(f"--model is '{weights}', which is no file; expected 2d, volume or the path of a model.pt.")
    return "volume" if read_description(weights).get("volume") else "2d"


def _find_source(model: str, root: Path) -> Path | None:
    """Return the trained model asked for; None where the bundle has none of that kind."""
    path = root / "models" / "model.pt" if model in KINDS else Path(model)
    if model in KINDS and (not path.is_file() or _kind_of(path) != model):
        return None
    _kind_of(path)
    require_matching_sha256(path)
    if "labels" not in read_description(path):
        raise BundleError(
            f"{description_path(path)} has no labels: it describes a SAM to start from, no trained model."
        )
    return path


def _keep_or_replace(weights: Path, source: Path | None, labels: Sequence[str] | None) -> str:
    """Decide between the model of an earlier start and the one asked for: a retrained model is never replaced."""
    present = list(read_class_labels(str(weights)).values())
    if labels and list(labels) != present:
        raise BundleError(
            f"--labels are {', '.join(labels)}, but the model in {weights.parent} has {', '.join(present)}: add "
            "--fresh to put that aside, or name another --app."
        )
    note = weights.parent / ORIGIN
    origin = json.loads(note.read_text(encoding="utf-8"))["sha256"] if note.is_file() else None
    retrained = sha256_of(weights) != origin
    other = source is not None and sha256_of(source) not in (origin, sha256_of(weights))
    if source is not None and other and not retrained:
        return _start_from(source, weights)
    kept = f"goes on with {'what was trained in' if retrained else 'the model in'} {weights.parent}"
    return kept + (f"; {source} is another model, --fresh starts from it" if other else "")


def _start_from(source: Path, weights: Path) -> str:
    publish_pair(source, weights.parent)
    _note_origin(weights)
    return f"a copy of {source}"


def _start_untrained(kind: str, labels: Sequence[str], root: Path, weights: Path) -> str:
    """Make an untrained model from the embedded SAM."""
    torch.manual_seed(0)  # for the tokens of several classes
    base = find_base_checkpoint("vit_tiny", None, root / "models" / "base")
    network = SamSP(checkpoint=base, num_classes=len(labels), exclusive=True, trainable="decoder")
    description = describe_network(
        network,
        labels={"0": "background", **{str(number): name for number, name in enumerate(labels, start=1)}},
        volume=volume_settings(dict.fromkeys(("orientation", "slice_axis", "slices_as_rgb", "intensity")), None)
        if kind == "volume"
        else None,
        trained_on={"procedural": False, "train_images": 0, "validation_images": 0},
        epochs=0,
        version=read_metadata(root)["version"],
    )
    pair = write_pair(network.merged_state_dict(), description, weights.with_name(".untrained.pt"))
    publish_pair(pair, weights.parent)
    for path in (pair, description_path(pair)):
        path.unlink()
    _note_origin(weights)
    return "UNTRAINED: its masks mean nothing until it was trained on yours"


def _note_origin(weights: Path) -> None:
    write_text(weights.parent / ORIGIN, json.dumps({"sha256": sha256_of(weights)}) + "\n")


def _require_servable(weights: Path) -> None:
    require_matching_sha256(weights)
    described = read_description(weights)
    if described["num_classes"] > 1 and not described["exclusive"]:
        raise BundleError(
            f"{weights} marks classes that may overlap; a MONAI Label server holds one class a pixel: train with "
            "--exclusive true."
        )


# --- files -------------------------------------------------------------------------------------------------------


def _copy_bundle(root: Path, folder: Path) -> None:
    """Replace the copy of an earlier start with the files that the server imports."""
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    shutil.copytree(root / "bundle", folder / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(folder / "configs", ignore_errors=True)
    (folder / "configs").mkdir()
    for name in ("configs/logging.conf", "LICENSE", "NOTICE"):
        shutil.copyfile(root / name, folder / name)


def _write_configs(kind: str, root: Path, folder: Path, weights: Path) -> None:
    """Write the one inference.json, train.json and metadata.json that the server reads."""
    contents = {
        "inference.json": ConfigParser.load_config_file(str(root / "configs" / "inference.json")),
        "train.json": train_config(root, weights, ["label_train.json"]),
        "metadata.json": _metadata(kind, root, weights),
    }
    for name, content in contents.items():
        write_text(folder / "configs" / name, json.dumps(content, indent=4) + "\n")


def _metadata(kind: str, root: Path, weights: Path) -> dict[str, Any]:
    """Return the metadata of the model; of volumes with the shape of its files, which tells clients of 3 dimensions."""
    metadata = model_metadata(root, weights)
    if kind == "volume":
        form = metadata["network_data_format"]
        shape = {"num_channels": 1, "spatial_shape": ["*", "*", "*"], "channel_def": {"0": "intensity"}}
        form["inputs"]["image"] |= {**shape, "format": "magnitude"}
        form["outputs"]["pred"] |= {"spatial_shape": ["*", "*", "*"]}
    return metadata
