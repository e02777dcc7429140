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
"""Parameters of requests to a MONAI Label server: what is unknown or not possible is told, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from bundle.core.errors import BundleError
from bundle.inference.request_parameters import INFER, TRAIN, require_parameters
from bundle.inference.user_prompt_reader import ReadUserPromptsd
from tests.fuzz.seeds import DESCRIPTION

# What clients send: the command lines of the guide, 3D Slicer and OHIF, and what the server adds.
SENT_TO_INFER = {
    "model": "m", "image": "a", "image_path": "a.png", "description": "", "device": ["cpu"],
    "model_filename": ["model.pt"],
    "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "client_id": "u", "logging": "INFO",
    "boxes": [1, 2, 3, 4], "points": None, "foreground": [], "background": [], "label": "Polyp", "Polyp": [[1, 2]],
    "save_label": "true", "label_tag": "original", "multi_gpu": False, "session_id": "", "output": "image",
}  # fmt: skip
SENT_TO_TRAIN = {
    "model": "m", "device": "cpu", "pretrained": True, "max_epochs": 50, "val_split": 0.2, "multi_gpu": True,
    "gpus": "all", "tracking": ["mlflow", "None"], "tracking_uri": "", "tracking_experiment_name": "", "run_id": "",
    "model_filename": ["model.pt"], "client_id": "u", "local_rank": 0, "bundle_path": "b",
}  # fmt: skip


def test_what_clients_send_is_taken() -> None:
    require_parameters(SENT_TO_INFER, INFER, ["polyp"])
    require_parameters(SENT_TO_TRAIN, TRAIN)
    require_parameters({"max_epochs": "2", "val_split": -1}, TRAIN)


@pytest.mark.parametrize(
    ("known", "request_", "sentence"),
    [
        (INFER, {"box": [1, 2, 3, 4]}, "box is no parameter of this request: did you mean boxes?"),
        (INFER, {"forground": [[1, 2]]}, "forground is no parameter of this request: did you mean foreground?"),
        (INFER, {"polpy": [[1, 2]]}, "polpy is no parameter of this request: did you mean polyp?"),
        (INFER, {"result_extention": ""}, "result_extention is no parameter of this request: did you mean result_ex"),
        (INFER, {"max_epochs": 3}, "max_epochs is no parameter of this request: docs/guides/monai_label.md has those"),
        (INFER, {"result_extension": 1.5}, "result_extension is 1.5, expected text."),
        (INFER, {"polyp": {"foreground": []}}, "polyp is {'foreground': []}, expected a list of points."),
        (INFER, {"logging": "loud"}, "logging is 'loud', expected one of DEBUG, INFO, "),
        (TRAIN, {"epochs": 3}, "epochs is no parameter of this request: did you mean max_epochs?"),
        (TRAIN, {"max_epochs": 0}, "max_epochs is 0, expected a whole number from 1 on."),
        (TRAIN, {"val_split": 1.5}, "val_split is 1.5, expected a number from 0 to below 1, or -1 for the lists"),
        (TRAIN, {"epochs": 3, "pretrained": "yes"}, "2 parameters are wrong:\n    - epochs is no parameter"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_told(known: Any, request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BundleError) as caught:
        require_parameters(request_, known, ["polyp"])
    assert str(caught.value).startswith(sentence)


def test_a_request_is_checked_and_an_inference_is_not(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(DESCRIPTION), encoding="utf-8")
    read = ReadUserPromptsd("image", str(tmp_path / "model.pt"), 64)
    record = {"image": MetaTensor(torch.zeros(3, 9, 8)), "weight_of_the_patient": 70}
    read(record)
    with pytest.raises(BundleError, match="weight_of_the_patient is no parameter"):
        read({**record, "image_path": "a.png"})
    with pytest.raises(BundleError, match="pointz is no parameter of this request: did you mean points"):
        read({"image": record["image"], "image_path": "a.png", "pointz": {"foreground": [[1, 2]]}})
    read({"image": record["image"], "image_path": "a.png", "TOOL": [[1, 2]]})
    with pytest.raises(BundleError, match=r"label has .+; expected the name or number of a class"):
        read({"image": record["image"], "image_path": "a.png", "foreground": [[1, 2]], "label": ["polyp"]})


def test_no_clicks_under_the_label_of_another_model_are_no_mistake() -> None:
    """A client with several models sends the labels of all of them, most without clicks."""
    require_parameters({"image": "a", "polyp": []}, INFER, ["front"])
    with pytest.raises(BundleError, match="polyp is no parameter of this request"):
        require_parameters({"image": "a", "polyp": [[1, 2, 0]]}, INFER, ["front"])
