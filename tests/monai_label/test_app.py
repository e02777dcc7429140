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
"""Scoring in the app folder of a server, with stand-ins for what the server brings; tests/label has the real one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bundle.core.errors import BundleError
from tests.conftest import ROOT

SERVER = {
    "fastapi": ("HTTPException",),
    "guard": ("RefusedError", "require_harmless"),
    "bundle_main": ("MyApp",),
    "monailabel.interfaces.app": ("MONAILabelApp",),
    "monailabel.interfaces.datastore": ("Datastore",),
    "monailabel.interfaces.tasks.infer_v2": ("InferTask", "InferType"),
    "monailabel.interfaces.tasks.scoring": ("ScoringMethod",),
    "monailabel.interfaces.tasks.strategy": ("Strategy",),
    "monailabel.tasks.infer.basic_infer": ("CallBackTypes",),
}


class Named:
    """A scoring method or strategy of the server: it keeps what it is."""

    def __init__(self, description: str) -> None:
        self.description = description


class Images(dict):
    """A datastore: what is known of each image."""

    def get_unlabeled_images(self, *_: Any) -> list[str]:
        return list(self)

    def get_image_uri(self, image: str) -> str:
        return image

    def get_image_info(self, image: str) -> dict[str, Any]:
        return self[image]

    def update_image_info(self, image: str, info: dict[str, Any]) -> None:
        self[image].update(info)


class Task:
    """A model that is certain of "sure" and cannot read "broken"; it may be published anew while it infers."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.republish = path, [], False

    def get_path(self) -> str:
        return str(self.path)

    def __call__(self, request: dict[str, Any], callbacks: dict[Any, Any]) -> None:
        image = request["image"]
        self.asked.append(image)
        if self.republish:
            publish(self.path, 2000)
        if image == "broken":
            raise OSError("cannot be read")
        callbacks["inferer"]({"pred": SimpleNamespace(meta={"uncertainty": 0.1 if image == "sure" else 0.9})})


def publish(path: Path, time: int) -> None:
    """A model of this time."""
    path.touch()
    os.utime(path, (time, time))


@pytest.fixture
def label_main(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, classes in SERVER.items():
        module = ModuleType(name)
        for each in classes:
            base = Named if each in ("ScoringMethod", "Strategy") else object
            setattr(module, each, type(each, (base,), {"INFERER": "inferer"}))
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("label_main", ROOT / "bundle" / "monai_label" / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_image_that_cannot_be_scored_is_tried_once_for_each_model(label_main: Any, tmp_path: Path) -> None:
    publish(tmp_path / "model.pt", 1000)
    task, images = Task(tmp_path / "model.pt"), Images({"broken": {}, "sure": {}, "unsure": {}})
    methods = {"sam_sp_2d": label_main.Uncertainty("sam_sp_2d", task)}
    strategy = label_main.LeastCertain(methods)
    assert strategy({}, images) == {"id": "unsure", "uncertainty": 0.9}
    assert strategy({}, images)["id"] == "unsure" and sorted(task.asked) == ["broken", "sure", "unsure"]
    publish(tmp_path / "model.pt", 1500)
    assert methods["sam_sp_2d"]({}, images) == {"scored": 2, "images": 3} and len(task.asked) == 6


def test_a_score_is_of_the_model_that_gave_it(label_main: Any, tmp_path: Path) -> None:
    publish(tmp_path / "model.pt", 1000)
    task, images = Task(tmp_path / "model.pt"), Images({"unsure": {}})
    method = label_main.Uncertainty("sam_sp_2d", task)
    task.republish = True
    method({}, images)
    assert images["unsure"]["uncertainty_sam_sp_2d"]["model"] == 1000
    assert method.score_of("unsure", images) is None  # to be scored by the new one


def test_an_image_that_goes_away_does_not_end_the_request(label_main: Any, tmp_path: Path) -> None:
    class Deleting(Images):
        def update_image_info(self, image: str, info: dict[str, Any]) -> None:
            if image == "sure":
                raise KeyError(image)
            super().update_image_info(image, info)

    publish(tmp_path / "model.pt", 1000)
    method = label_main.Uncertainty("sam_sp_2d", Task(tmp_path / "model.pt"))
    assert method({}, Deleting({"sure": {}, "unsure": {}})) == {"scored": 1, "images": 2}


def test_a_model_that_is_not_there(label_main: Any, tmp_path: Path) -> None:
    strategy = label_main.LeastCertain({"sam_sp_2d": label_main.Uncertainty("sam_sp_2d", Task(tmp_path / "model.pt"))})
    with pytest.raises(ValueError, match="There is no model 'sam_sp_3d'; expected one of sam_sp_2d"):
        strategy({"model": "sam_sp_3d"}, Images({"sure": {}}))


def test_a_training_is_refused_before_it_begins(label_main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[dict[str, Any]] = []
    base = sys.modules["bundle_main"].MyApp
    monkeypatch.setattr(base, "__init__", lambda self, *_: None, raising=False)
    monkeypatch.setattr(base, "train", lambda self, request: trained.append(request) or {}, raising=False)
    app = label_main.SamSPApp("app", "studies", {"models": "sam_sp_2d", "sam2": "false"})
    monkeypatch.setattr(app, "_require_harmless", lambda request: None)  # has tests of its own
    with pytest.raises(BundleError, match="max_epoch is no parameter of this request: did you mean max_epochs"):
        app.train({"model": "sam_sp_2d", "max_epoch": 1})
    assert not trained
    app.train({"model": "sam_sp_2d", "max_epochs": 1})
    assert trained == [{"model": "sam_sp_2d", "max_epochs": 1}]


@pytest.mark.parametrize(("word", "end"), [("model", "did you mean models"), ("xyz", "expected one of models, ")])
def test_a_word_behind_conf_that_nothing_reads(label_main: Any, word: str, end: str) -> None:
    with pytest.raises(ValueError, match=f"--conf has '{word}', which nothing reads: {end}"):
        label_main.SamSPApp("app", "studies", {"models": "sam_sp_2d", word: "a"})
