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
"""Every file is written by the helpers of `bundle.core.files`: nobody reads half of one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = sorted([*(ROOT / "bundle").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
HELPERS = {"write_atomically", "write_together"}
# Calls that write a file, by the last part of their names: of Python, torch, NumPy, Pillow, nibabel, pydicom, peft ...
WRITING = {
    "write_bytes", "write_text", "save", "save_as", "save_file", "save_pretrained", "savez", "savez_compressed",
    "savefig", "dcmwrite", "dump", "copy2", "copyfile", "copytree", "copyfileobj", "move", "tofile", "to_csv",
    "to_filename", "imwrite", "imsave", "write_image", "WriteImage", "open_memmap", "memmap", "FileHandler",
    "download_url", "urlretrieve", "NamedTemporaryFile", "SummaryWriter", "extractall", "posix_fallocate", "ftruncate",
    "truncate", "save_net_with_metadata", "write_metrics_reports", "export_config_file",
}  # fmt: skip
# Other ways, and why no reader can take what they leave for a whole file.
ADDED = "grows by whole lines; what reads it leaves out a last line that is not whole"
LOG = "a log, which people read while it grows"
FOLDER = "a folder of many files; a file that is written last says that it is complete"
COPY = "a copy of code that every start makes anew before anything reads it"
TOGETHER = "fills the folder that write_together gave Exporter._run"
MEMORY = "no file: memory"
ALLOWED = {
    "bundle/core/files.py:append_text": ADDED,
    "bundle/data/anonymous_names.py:_key": "a name of its own, then a link, which the first of several processes makes",
    "bundle/data/cached_items.py:to_bytes": MEMORY,
    "bundle/data/dicom_pixels.py:_decode": "in a temporary folder of this process alone",
    "bundle/data/disk_cache.py:_note": "one number, under a lock, of a fixed length that is checked",
    "bundle/data/disk_cache.py:_usage": "the same",
    "bundle/export/exporter.py:write_onnx": TOGETHER,
    "bundle/export/exporter.py:write_torch_export": TOGETHER,
    "bundle/export/exporter.py:write_torchscript": TOGETHER,
    "bundle/monai_label/app_folder.py:_copy_bundle": COPY,
    "bundle/monai_label/app_folder.py:lay_out_app": COPY,
    "bundle/monai_label/app_lock.py:hold_app": "a lock, whose text only tells people who holds it",
    "bundle/monai_label/server.py:start": LOG,
    "bundle/predictor/result_folder.py:_write": "the results' own save, which is looked at itself",
    "bundle/procedural/demo_set.py:make_demo": FOLDER,
    "bundle/procedural/scene_pool.py:_make_array": FOLDER,
    "bundle/procedural/scenes/camera.py:to_image": MEMORY,
    "bundle/report/pictures.py:_encode": MEMORY,
    "scripts/benchmarks/data_cache.py:make_images": FOLDER,
    "scripts/benchmarks/gpu/__main__.py:run_all": LOG,
    "scripts/benchmarks/long_runs/runs.py:run": LOG,
    "scripts/benchmarks/measure.py:peak_memory_mib": "no file: a switch of the kernel",
    "scripts/benchmarks/pack_gpu.py:_write_mask": "a folder that is made anew as a whole",
    "scripts/benchmarks/pack_gpu.py:pack": "a folder that is made anew as a whole",
    "scripts/benchmarks/pack_gpu.py:pack_images": "a folder that is made anew as a whole",
    "scripts/experiments/negative_windows.py:cut_windows": FOLDER,
    "scripts/experiments/nuclei.py:run": LOG,
    "scripts/experiments/polyps/cells.py:call": LOG,
    "scripts/onnx_demo.py:main": "stands alone without the bundle: a temporary name of its own, then a rename",
    "scripts/tour.py:_to_jpeg": MEMORY,
    "scripts/experiments/real_weights/small_images.py:through_webp": MEMORY,
}
# MONAI's classes that write by themselves, as configs name them, and what makes them whole.
MONAI_WRITERS = {
    "SaveImaged": "its writer is one of bundle.inference.mask_files",
    "StatsHandler": "writes to the log alone",
    "TensorBoardStatsHandler": "TensorBoard's own format, which readers follow while it grows",
}


def writes(path: Path) -> Iterator[tuple[str, int]]:
    """The function and line of each call that writes a file by other means than the helpers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    handed = handed_functions(tree)

    def visit(node: ast.AST, function: str, inside: bool) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef):
            function, inside = node.name, inside or node.name in handed
        elif isinstance(node, ast.Lambda):
            inside = inside or id(node) in handed
        elif isinstance(node, ast.Call) and is_writing(node) and not inside:
            yield function, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, inside)

    yield from visit(tree, "", False)


def handed_functions(tree: ast.AST) -> set[str | int]:
    """Functions and lambdas that are handed to a helper, and the module's functions that these call."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found: set[str | int] = set()
    waiting: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and last_name(node.func) in HELPERS:
            waiting += [*node.args, *(keyword.value for keyword in node.keywords)]
    while waiting:
        node = waiting.pop()
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Lambda) and id(node) not in found:
            found.add(id(node))
            waiting += [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        elif name in functions and name not in found:
            found.add(name)
            waiting += [call.func for call in ast.walk(functions[name]) if isinstance(call, ast.Call)]
    return found


def is_writing(call: ast.Call) -> bool:
    name = last_name(call.func)
    if name in {"open", "ZipFile", "fdopen"}:
        modes = [*call.args[:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        texts = [str(mode.value) for mode in modes if isinstance(mode, ast.Constant)]
        flags = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
        return any(re.fullmatch(r"[rbt]*[wax+][rbt+]*", text) for text in texts) or "O_CREAT" in flags
    if name == "copy":
        return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "shutil"
    if isinstance(call.func, ast.Name) and name in {"save", "write_text"}:
        return False  # functions of our own, which are looked at themselves
    if name == "save" and not call.args:
        return False  # a method of our own without a path
    return name in WRITING


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_other_way_to_write() -> None:
    found = {f"{path.relative_to(ROOT)}:{name}": line for path in MODULES for name, line in writes(path)}
    assert found.keys() - ALLOWED.keys() == set(), "write these through bundle.core.files"
    assert ALLOWED.keys() - found.keys() == set(), "these are no longer needed"


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("open(path, 'w')", True),
        ("open(path, mode='ab')", True),
        ("open(path, 'r+b')", True),
        ("open(path, 'rb')", False),
        ("open(path)", False),
        ("Path(path).write_text('x')", True),
        ("torch.save(state, path)", True),
        ("zipfile.ZipFile(path, 'w')", True),
        ("zipfile.ZipFile(path)", False),
        ("shutil.copy(a, b)", True),
        ("copy.copy(a)", False),
        ("write_atomically(path, lambda partial: torch.save(state, partial))", False),
        ("write_atomically(path, partial(torch.save, state))", False),
        ("write_atomically(path, lambda partial: keep(partial)); torch.save(state, path)", True),
    ],
)
def test_the_search_finds_what_it_looks_for(line: str, written: bool, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(line, encoding="utf-8")
    assert bool(list(writes(tmp_path / "module.py"))) == written


def test_configs_name_no_other_writer() -> None:
    """MONAI's ``MetricsSaver``, ``CheckpointSaver`` and the like write in place; `SaveImaged` through our writers."""
    for path in sorted((ROOT / "configs").glob("*.json")):
        for target, rest in re.findall(r'"_target_": "([^"]+)"([^}]*)', path.read_text(encoding="utf-8")):
            name = target.rpartition(".")[2]
            if not target.startswith("bundle.") and re.search(r"Sav|Writ|Stats|Log", name):
                assert name in MONAI_WRITERS, f"{path.name}: {target}"
            if name == "SaveImaged":
                assert '"writer": "bundle.inference.mask_files.' in rest, path.name
