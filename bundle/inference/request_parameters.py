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
"""The table of the parameters of a request to a MONAI Label server, and its check: the server takes any silently."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from bundle.core.errors import raise_all, shorten
from bundle.core.setting_forms import BOOLEAN, TEXT, Form, choice, number, one_of, sequence, whole
from bundle.inference.prompt_parser import KINDS
from bundle.inference.requests import PATH
from bundle.sam_sp.user_prompts import BOXES, POINTS

# What the server, a client or another check looks at: anything.
ANY = Form("anything", lambda value: value)
SHARE = number(least=0, below=1)
CLICKS = sequence("a list of points", ANY)
LEVEL = choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "debug", "info", "warning", "error", "critical")
# Parameters of every request. Clients send back what the server offers them, `device` and `model_filename` as lists.
COMMON: Mapping[str, Form] = {
    "model": ANY, "device": ANY, "client_id": ANY, "session": ANY, "session_id": ANY, "bundle_path": ANY,
    "model_filename": ANY, "logging": LEVEL, "multi_gpu": BOOLEAN, "gpus": ANY,
}  # fmt: skip
INFER: Mapping[str, Form] = {
    **COMMON,
    # user prompts, which are parsed together
    **dict.fromkeys((BOXES, POINTS, *KINDS, "label"), ANY),
    # what is written, where, and what is sent back
    "result_extension": TEXT, "result_dtype": TEXT, "result_compress": BOOLEAN, "result_write_to_file": BOOLEAN,
    "result_prefix": TEXT, "restore_label_idx": BOOLEAN, "skip_writer": BOOLEAN, "save_label": BOOLEAN,
    "label_tag": TEXT, "label_info": ANY, "label_names": ANY, "output": ANY,
    # batches of images
    "images": ANY, "max_workers": whole(0), "max_batch_size": whole(0), "timeout": number(above=0),
    # of the server itself
    "image": ANY, PATH: ANY, "description": ANY, "labels": ANY, "image_meta_dict": ANY, "image_transforms": ANY,
    "latencies": ANY, "annotations": ANY,
    "cache_transforms": BOOLEAN, "cache_transforms_in_memory": BOOLEAN, "cache_transforms_ttl": number(least=0),
}  # fmt: skip
TRAIN: Mapping[str, Form] = {
    **COMMON,
    "max_epochs": whole(1),
    "val_split": one_of("a number from 0 to below 1, or -1 for the lists of the bundle", SHARE, whole(-1, -1)),
    "pretrained": BOOLEAN, "force_multi_gpu": BOOLEAN, "run_id": TEXT, "local_rank": whole(0),
    "tracking": ANY, "tracking_uri": TEXT, "tracking_experiment_name": TEXT, "tracking_run_name": TEXT,
}  # fmt: skip
# What a request calls otherwise than a command.
SYNONYMS = {
    "epochs": "max_epochs", "box": BOXES, "bbox": BOXES, "clicks": POINTS, "extension": "result_extension",
    "class": "label", "validation": "val_split",
}  # fmt: skip


def require_parameters(request: Mapping[Any, Any], known: Mapping[str, Form], labels: Iterable[str] = ()) -> None:
    """Check the parameters of a request.

    Args:
        request: values by name; None says nothing.
        known: `INFER` or `TRAIN`.
        labels: names of the classes, in any case, under which a client may send points.

    Raises:
        BundleError: names are unknown, or values are not possible; it has a sentence for each.
    """
    classes = {name.lower(): CLICKS for name in labels}
    problems = []
    for name, value in request.items():
        form = known.get(name) or classes.get(str(name).lower())
        if form is None and isinstance(value, list) and not value:
            continue  # no clicks, under the label of another model of the server
        if form is None:
            meant = _suggest(str(name), [*known, *classes])
            end = f"did you mean {meant}?" if meant else "docs/guides/monai_label.md has those that it takes."
            problems.append(f"{name} is no parameter of this request: {end}")
        elif value is not None and not _is_possible(form, value):
            problems.append(f"{name} is {shorten(value)}, expected {form.words}.")
    raise_all("parameters", problems)


def _is_possible(form: Form, value: Any) -> bool:
    try:
        form.read(value)
    except (TypeError, ValueError):
        return False
    return True


def _suggest(name: str, known: Iterable[str]) -> str | None:
    meant = SYNONYMS.get(name.lower(), "")
    close = [meant] if meant in known else difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.7)
    return close[0] if close else None
