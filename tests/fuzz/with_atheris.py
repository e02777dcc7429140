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
"""Let atheris look for bytes that break a reader: ``python -m tests.fuzz.with_atheris slice.dcm --minutes 5``.

Atheris is libFuzzer for Python: it sees which lines an input reaches, and keeps those that reach new ones. It is no
dependency of this project: ``pip install atheris``. The kinds of files are those of `tests.fuzz.seeds`. What breaks a
reader is written to a file, whose path is printed, and ends the run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import atheris

# The library in Python that reads a kind of file: its lines count as well.
LIBRARIES = {".dcm": "pydicom", ".gz": "nibabel", ".nii": "nibabel", ".json": "json", ".pt": "zipfile", ".csv": "csv"}


def main() -> None:
    """Fuzz one kind of file until the time is over or something breaks."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.with_atheris", description=__doc__)
    parser.add_argument("name", help="a kind of file, such as slice.dcm")
    parser.add_argument("--minutes", type=float, default=5, help="how long (5)")
    parser.add_argument("--output_dir", type=Path, default=Path("output/fuzz"), help="for inputs that were kept")
    options = parser.parse_args()
    library = LIBRARIES.get(Path(options.name).suffix, "PIL")
    with atheris.instrument_imports(include=["bundle.data", "bundle.checkpoints", library]):
        seeds, targets = (importlib.import_module(f"tests.fuzz.{name}") for name in ("seeds", "targets"))
    corpus = options.output_dir / options.name
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(seeds.seed(options.name))

    def try_bytes(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            targets.read_as(options.name, content, Path(folder))

    flags = [f"-max_total_time={options.minutes * 60:.0f}", "-max_len=8192", "-rss_limit_mb=8192"]
    prefix = f"-artifact_prefix={options.output_dir}/broke_{options.name}_"
    atheris.Setup([sys.argv[0], *flags, prefix, str(corpus)], try_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
