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
"""The command that a training prints at its end works on what the training left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundle.data.datalists import load_datalists
from bundle.data.dataset_check import require_labeled
from bundle.training.publishing import Publisher
from tests.corpus.datasets import folder_of


@pytest.mark.parametrize(
    ("count", "split", "run_id"),
    [(2, None, "inferring"), (12, None, "evaluating"), (12, {"validation": 2}, "inferring"), (1, None, "inferring")],
)
def test_the_next_command(count: int, split: dict[str, Any] | None, run_id: str, root: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", count)
    command = {"dataset_dir": str(folder), "split": split, "mask_suffix": None}
    nothing: Any = None
    publisher = Publisher(str(root), str(tmp_path / "out"), nothing, nothing, {}, command=command)
    _, line = publisher._next_step("images", tmp_path / "out" / "model.pt")
    assert f" run {run_id} " in line and f"--weights {tmp_path / 'out' / 'model.pt'}" in line
    if run_id == "evaluating":
        assert load_datalists(folder, split)["test"] and f"--dataset_dir {folder}" in line
    else:
        with pytest.raises(Exception, match="There are no test images: "):
            require_labeled(load_datalists(folder, split)["test"])
