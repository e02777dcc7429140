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
"""``main.py`` of the app folder: MONAI Label's app for bundles, with active learning and clicks.

`app_folder` copies this file there, beside the server's own app as ``bundle_main.py``. Only the server imports it.
It must not import anything of this bundle at its top, because each model has its own copy, and the server finds it
only after it has built the models.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

import bundle_main
from fastapi import HTTPException
from guard import RefusedError, require_harmless
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.infer.basic_infer import CallBackTypes

logger = logging.getLogger(__name__)

STRATEGY = "least_certain"
# Suffix of a model's name: the same model, offered to the panels of clients that send clicks.
CLICKS = "_clicks"
# Key in the metadata of a prediction, see `bundle.inference.uncertainty`.
META_KEY = "uncertainty"
# What the server and its app for bundles read of ``--conf``.
CONF = (
    "models", "preload", "skip_trainers", "zoo_source", "zoo_repo", "auth_token", "sam2", "server_mode",
    "epistemic_model", "epistemic_max_samples", "epistemic_simulation_size", "epistemic_dropout",
)  # fmt: skip
# Seconds that a request for the next sample may spend on images whose score is missing or from an older model.
SCORING_SECONDS = 20.0


class Uncertainty(ScoringMethod):
    """Score the uncertainty of a model on each image without a label.

    Args:
        name: name of the model, under which scores are kept in the datastore.
        task: inference task of the model.
    """

    def __init__(self, name: str, task: InferTask) -> None:
        super().__init__(f"Uncertainty of {name}, without a label")
        self.name, self.task = name, task
        self.failed: set[tuple[str, float]] = set()  # images, and the model that could not score them

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score all images without a label whose score is missing or from an older model."""
        images = datastore.get_unlabeled_images()
        scored = self.update(images, datastore, request)
        return {"scored": scored, "images": len(images)}

    def update(
        self, images: list[str], datastore: Datastore, request: dict[str, Any], until: float = float("inf")
    ) -> int:
        """Score images while there is time, and return their number. An unreadable image is logged once."""
        count = 0
        for image in images:
            if time.monotonic() > until:
                break
            model = self._model()  # before the inference: a training may publish another one meanwhile
            if self.score_of(image, datastore) is not None or (image, model) in self.failed:
                continue
            try:
                score = self._infer(datastore.get_image_uri(image), request)
                datastore.update_image_info(image, {self._key: {"score": score, "model": model}})
                count += 1
            except Exception:  # an error of one image must not keep the others from being scored
                self.failed.add((image, model))
                logger.exception("%s: %s cannot be scored and comes last", self.name, image)
        return count

    def score_of(self, image: str, datastore: Datastore) -> float | None:
        """Return the score of an image by the current model, or None."""
        entry = datastore.get_image_info(image).get(self._key, {})
        return float(entry["score"]) if entry.get("model") == self._model() else None

    @property
    def _key(self) -> str:
        return f"{META_KEY}_{self.name}"

    def _model(self) -> float:
        return os.stat(self.task.get_path()).st_mtime

    def _infer(self, path: str, request: dict[str, Any]) -> float:
        scores: list[float] = []

        def record(data: dict[str, Any]) -> dict[str, Any]:
            scores.append(float(data["pred"].meta[META_KEY]))
            return data

        device = {"device": request["device"]} if "device" in request else {}
        self.task({"image": path, "skip_writer": True, **device}, callbacks={CallBackTypes.INFERER: record})
        return scores[0]


class LeastCertain(Strategy):
    """Choose the image without a label that a model is least certain of, among those scored so far.

    Images are scored in pseudo-random order, so that in a large folder the first requests choose from a representative
    sample. Scores are kept until the model changes.

    Args:
        methods: scoring methods by the name of the model; a request may name one as "model", else the first is used.
    """

    def __init__(self, methods: dict[str, Uncertainty]) -> None:
        super().__init__("Image that the model is least certain of")
        self.methods = methods

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        name = request.get("model") or next(iter(self.methods))
        if name not in self.methods:
            raise ValueError(f"There is no model '{name}'; expected one of {', '.join(self.methods)}.")
        method = self.methods[name]
        images.sort(key=lambda image: hashlib.sha256(image.encode()).hexdigest())
        method.update(images, datastore, request, time.monotonic() + SCORING_SECONDS)
        scores = {image: score for image in images if (score := method.score_of(image, datastore)) is not None}
        chosen = max(images, key=lambda image: scores.get(image, float("-inf")))
        logger.info("%s: %s of %d scored images", STRATEGY, chosen, len(scores))
        return {"id": chosen, META_KEY: scores.get(chosen)}


class SamSPApp(bundle_main.MyApp, MONAILabelApp):  # the server looks for the second among the direct bases
    """The server's app for bundles; each model is also offered for clicks, with a scoring method and a strategy.

    Every request is looked through first, see `bundle.monai_label.guard`, whichever way it came.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        require_known(conf)
        super().__init__(app_dir, studies, conf)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Return the mask of an image of the studies, or of one that the client sent."""
        self._require_harmless(request)
        return super().infer(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train a model on the final labels; parameters that it does not take are an error before anything is read."""
        from bundle.inference.request_parameters import TRAIN, require_parameters

        self._require_harmless(request)
        require_parameters(request, TRAIN)
        return super().train(request)

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Make the masks of all images, or of those without a label."""
        self._require_harmless(request)
        return super().batch_infer(request, datastore)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Score images."""
        self._require_harmless(request)
        return super().scoring(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Choose the next image."""
        self._require_harmless(request)
        return super().next_sample(request)

    def bundle_path(self, model: str) -> str:
        """Return the folder of a model; where there is none, one of the server, which else takes that of the client.

        The server puts it onto the path of the Python that trains or scores.
        """
        return str(super().bundle_path(model) or os.path.join(self.app_dir, "model"))

    def _require_harmless(self, request: dict[str, Any]) -> None:
        """Raise an `HTTPException` for a request that leaves the studies, the uploads and the sessions."""
        is_folder = not self.studies.startswith(("http://", "https://"))
        own = [os.path.join(self.app_dir, name) for name in ("uploads", "sessions", "cache")]
        data = {key: value for key, value in request.items() if key != "bundle_path"}  # see above
        try:
            require_harmless(data, own + [self.studies] * is_folder)
        except RefusedError as error:
            raise HTTPException(error.status, error.sentence) from error

    def init_infers(self) -> dict[str, InferTask]:
        """Return the inference tasks by the names of the models, and each again for clicks."""
        infers = super().init_infers()
        return infers | {f"{name}{CLICKS}": for_clicks(name, task) for name, task in infers.items() if task.is_valid()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Return the scoring methods by the names of the models."""
        return {**super().init_scoring_methods(), **self._methods()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the strategies: first the least certain image, which clients offer first, then the server's own."""
        methods = self._methods()
        return {**({STRATEGY: LeastCertain(methods)} if methods else {}), **super().init_strategies()}

    def _methods(self) -> dict[str, Uncertainty]:
        models = {name: task for name, task in self._infers.items() if not name.endswith(CLICKS)}
        return {name: Uncertainty(name, task) for name, task in models.items() if task.is_valid()}


def require_known(conf: Iterable[str]) -> None:
    """Raise a `ValueError` for a word behind ``--conf`` that neither this app nor the server reads."""
    for name in conf:
        if name not in CONF:
            close = difflib.get_close_matches(name, CONF, n=1)
            raise ValueError(
                f"--conf has {name!r}, which nothing reads: "
                + (f"did you mean {close[0]}?" if close else f"expected one of {', '.join(CONF)}.")
            )


def for_clicks(name: str, task: InferTask) -> InferTask:
    """Return the same model, with the same network, for clients that offer clicks for some types of models only.

    DeepGrow has clicks on foreground and background of one class, DeepEdit clicks by the names of classes. The
    dimension is 3: with 2, clients would send the clicks of a single slice.
    """
    clicks = copy.copy(task)
    clicks.type = InferType.DEEPGROW if len(task.labels) == 1 else InferType.DEEPEDIT
    clicks.dimension = 3
    clicks.description = f"{name}, corrected by clicks"
    return clicks
