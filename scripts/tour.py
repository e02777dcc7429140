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
"""Make the notebook of the tour, docs/guides/tour.ipynb, from its page, docs/guides/tour.md.

    python -m scripts.tour

Blocks of Python and commands become cells, and are executed in the root of the clone. The notebook gets what they print
and show; the page has the same pictures, each in the line after its block.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bundle.core.errors import show_errors_plainly
from bundle.core.files import write_atomically, write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "tour.md"
# the comment that says who tests a block, its language and text, and the line with its picture
BLOCK = re.compile(r"<!-- [^\n]* -->\n```(python|bash)\n(.*?)\n```\n(?:\n!\[[^\]]*\]\(([^)]+)\)\n)?", flags=re.DOTALL)
LARGEST = 900  # pixels along the width of a picture


@dataclass(frozen=True)
class Cell:
    """A cell of the notebook: its text, whether it is code, and the path from the page to its picture, None without."""

    source: str
    is_code: bool
    picture: str | None = None


@dataclass(frozen=True)
class Output:
    """Text that a cell printed, and the picture at its end as a JPEG."""

    text: str
    picture: bytes | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute the page, and write its pictures and the notebook."""
    argparse.ArgumentParser(
        prog="python -m scripts.tour", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    cells = read_cells(PAGE.read_text(encoding="utf-8"))
    os.chdir(PAGE.parent)
    outputs = run_cells(cells)
    for cell, output in zip(cells, outputs, strict=True):
        if cell.picture is not None and output.picture is not None:
            _write_picture(PAGE.parent / cell.picture, output.picture)
    notebook = PAGE.with_suffix(".ipynb")
    write_text(notebook, json.dumps(make_notebook(cells, outputs), indent=1, ensure_ascii=False) + "\n")
    print(f"Wrote {notebook}")


def _write_picture(file: Path, content: bytes) -> None:
    write_atomically(file, lambda path: path.write_bytes(content))


def read_cells(page: str) -> list[Cell]:
    """Return the cells of a page in Markdown; those between blocks are text."""
    cells, end = [], 0
    for block in BLOCK.finditer(page):
        language, text, picture = block.groups()
        cells.append(Cell(page[end : block.start()].strip(), is_code=False))
        cells.append(Cell(text if language == "python" else f"!{text}", True, picture))
        end = block.end()
    cells.append(Cell(page[end:].strip(), is_code=False))
    return [cell for cell in cells if cell.source]


def run_cells(cells: Sequence[Cell]) -> list[Output]:
    """Execute the code of cells one after another, as a notebook does, and return the output of every cell."""
    names: dict[str, Any] = {}
    return [_run(cell.source, names) if cell.is_code else Output("") for cell in cells]


def _run(source: str, names: dict[str, Any]) -> Output:
    if source.startswith("!"):
        program, *words = shlex.split(source[1:])
        assert program == "python", source
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"{source}\n{done.stderr}")
        return Output(_shorten(done.stdout))
    *statements, last = ast.parse(source).body
    result = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
    module = ast.Module(statements if result else [*statements, last], type_ignores=[])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(module, PAGE.name, "exec"), names)
        value = eval(compile(result, PAGE.name, "eval"), names) if result else None
    return Output(_shorten(printed.getvalue()), _to_jpeg(value) if isinstance(value, Image.Image) else None)


def _shorten(text: str) -> str:
    """Return a text without the folder that the cells run in, which differs from machine to machine."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")


def _to_jpeg(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((LARGEST, 10 * LARGEST))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def make_notebook(cells: Sequence[Cell], outputs: Sequence[Output]) -> dict[str, Any]:
    """Return a notebook, of version 4.5 of its format, with the outputs of its cells."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [_to_json(*numbered) for numbered in zip(range(len(cells)), cells, outputs, strict=True)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _to_json(number: int, cell: Cell, output: Output) -> dict[str, Any]:
    common = {"id": f"cell-{number}", "metadata": {}, "source": cell.source.splitlines(keepends=True)}
    if not cell.is_code:
        return {"cell_type": "markdown", **common}
    return {"cell_type": "code", "execution_count": None, "outputs": list(_outputs(output)), **common}


def _outputs(output: Output) -> Iterator[dict[str, Any]]:
    if output.text:
        yield {"name": "stdout", "output_type": "stream", "text": output.text.splitlines(keepends=True)}
    if output.picture is not None:
        data = {"image/jpeg": base64.b64encode(output.picture).decode()}
        yield {"data": data, "metadata": {}, "output_type": "display_data"}


if __name__ == "__main__":
    show_errors_plainly()
    main()
