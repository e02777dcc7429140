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
"""Data and a bundle root for the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundle import demo
from tests.workflows.commands import META


@pytest.fixture(scope="session")
def procedural(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural set of 14 images."""
    return demo.make_demo(tmp_path_factory.mktemp("sets") / "demo", count=14, seed=3)


@pytest.fixture(scope="session")
def dataset(procedural: Path) -> Path:
    """The same pictures as a user's data: a copy without the marker."""
    copy = procedural.parent / "mine"
    shutil.copytree(procedural, copy)
    (copy / demo.MARKER).unlink()
    return copy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle root of its own, so that nothing here publishes into the checkout."""
    (tmp_path / "root" / "configs").mkdir(parents=True)
    shutil.copy(META, tmp_path / "root" / "configs")
    return tmp_path / "root"
