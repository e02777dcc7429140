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
"""Every command line of the documentation: its files, run id, settings and options exist."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from tests.conftest import ROOT
from tests.docs.pages import PAGES, STARTERS, blocks, commands, name

# Arguments of MONAI's `run` that are no ids of the configs.
ARGUMENTS = {"config_file", "meta_file", "logging_file", "bundle_root", "tracking", "tracking_uri", "experiment_name"}
OTHERS = {
    ".",
    "apt-get",
    "curl",
    "docker",
    "echo",
    "git",
    "mlflow",
    "monailabel",
    "nvflare",
    "pre-commit",
    "tensorboard",
}
PASSES_SETTINGS_ON = "and the settings of a training"
MARKER = re.compile(r"run|run: slow|tested: (\S+)|not run: .+")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_block_of_commands_says_who_runs_it(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            found = MARKER.fullmatch(block.marker)
            assert found, f"{block.marker!r} in front of {block.text}"
            assert found[1] is None or (ROOT / found[1]).is_file(), block.marker
        elif block.language == "python":
            assert block.marker == "python" or block.marker.startswith("tested: "), block.text
        else:
            assert not any(line.startswith(STARTERS) for line in block.lines), block.text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_command_names_what_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in commands(page):
        check(line)


@pytest.mark.parametrize(
    "line",
    [
        "python -m monai.bundle run training --config_file configs/trian.json",
        "python -m monai.bundle run trianing --config_file configs/train.json",
        "python -m monai.bundle run training --config_file configs/train.json --epoch 3",
        "python -m scripts.lable --studies FOLDER",
        "python -m scripts.label --study FOLDER",
        "python -m monai.bundle verify_net_in_out --network network_def",
        'pip install --constraint constraints.txt ".[exprot]"',
        "make trian",
        "pyhton -m pytest",
    ],
)
def test_a_typing_error_is_found(line: str) -> None:
    with pytest.raises((AssertionError, ImportError, AttributeError, OSError)):
        check(line)


def check(line: str) -> None:
    """Raise where a command names a file, a run id, a setting, an option or a target that is not there."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if not words:
        return
    program = Path(words[0]).name or words[0]
    if program == "torchrun":
        program, words = "python", ["python", *words[words.index("-m") :]]
    if program == "python":
        check_python(words[1:], line)
    elif program == "pip":
        check_install(words[2:])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets), line
    else:
        assert program in OTHERS, line


def check_python(words: Sequence[str], line: str) -> None:
    """Check what follows ``python``."""
    if words[0] == "-c":
        return
    if words[0] != "-m":
        check_options(words[1:], script_help(words[0]), line)
        return
    module, rest = words[1], words[2:]
    if module == "monai.bundle" and rest[0] == "run":
        check_run(rest[1:], line)
    elif module in ("monai.bundle", "fire"):
        owner = importlib.import_module(rest.pop(0)) if module == "fire" else monai.bundle
        known = inspect.signature(getattr(owner, rest[0])).parameters
        assert {word[2:] for word in rest if word.startswith("--")} <= set(known), line
    elif module.startswith("scripts.") or module == "tests.fuzz":
        check_options(rest, script_help(module), line)
    elif module == "pip":
        check_install(rest[1:])
    elif module == "pytest":
        assert all((ROOT / word).exists() for word in rest if "/" in word), line
    else:
        assert module in ("venv", "zipfile", "http.server", "monailabel.main"), line


def check_run(words: Sequence[str], line: str) -> None:
    """Check the run id and the ids that are set, in the merged config."""
    run_id, options = words[0], dict(zip(words[1::2], words[2::2], strict=True))
    if "..." in words or not options:
        return
    files = options["--config_file"]
    files = ast.literal_eval(files) if files.startswith("[") else [files]
    merged = merge(*(file for file in files if file.startswith("configs/")))
    assert run_id in merged, line
    for key in options:
        assert key.startswith("--") and (key[2:] in ARGUMENTS or key[2:] in merged), f"{key} in {line}"


@functools.cache
def merge(*files: str) -> ConfigParser:
    """Return the config that MONAI makes of several files."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in files])
    return parser


def check_options(words: Sequence[str], told: str, line: str) -> None:
    """Check the options of a script; some take the settings of a training as well."""
    known = set(re.findall(r"--[\w-]+", told))
    if told.endswith(PASSES_SETTINGS_ON):
        known |= {f"--{key}" for key in merge("configs/train.json").config}
    assert {word for word in words if word.startswith("--")} <= known, line


@functools.cache
def script_help(script: str) -> str:
    """Return what a script prints for ``--help``, and whether it passes further words on as settings."""
    captured: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr("argparse.ArgumentParser._print_message", lambda _, message, file=None: captured.append(message))
        patch.syspath_prepend(str(ROOT))
        with contextlib.suppress(SystemExit):  # one without options does its work
            if script.endswith(".py"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")
    path = ROOT / script if script.endswith(".py") else ROOT / script.replace(".", "/")
    sources = [path] if path.suffix else [path.with_suffix(".py"), *path.glob("*.py")]
    if any("parse_with_settings(" in file.read_text(encoding="utf-8") for file in sources if file.is_file()):
        captured.append(PASSES_SETTINGS_ON)
    return "".join(captured)


def check_install(words: Sequence[str]) -> None:
    """Check the constraints, the requirement files and the extras of a ``pip install``."""
    optional = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^(\w+) = \[", optional.split("\n[")[0], flags=re.MULTILINE))
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--constraint", "-r"):
            assert (ROOT / word).is_file(), word
        elif found := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(found[1].split(",")) <= extras, word
        elif "==" in word:
            assert word in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(), word
