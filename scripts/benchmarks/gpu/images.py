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
"""Images of the kit: the folder of ``--data`` has the layout of `scripts.benchmarks.pack_gpu`, toy ones are drawn."""

from __future__ import annotations

from pathlib import Path

from bundle.core.files import write_text
from bundle.procedural.demo_set import make_demo

KVASIR, CLINICDB, SPLITS = "kvasir-seg", "cvc-clinicdb", "splits"
# Pictures that are drawn where there are no real ones; the first tests of each list, the others train.
DRAWN, TOY_DRAWN, TESTED = 80, 14, 2


def count_images(folder: Path) -> int:
    """Return the number of images of a set."""
    return sum(1 for _ in (folder / "images").iterdir())


def is_complete(data: Path | None) -> bool:
    """Return whether a folder has both sets of polyps and their lists."""
    return data is not None and all((data / name).is_dir() for name in (KVASIR, CLINICDB, SPLITS))


def toy_data(work: Path, toy: bool) -> Path:
    """Return a folder with the layout of the real data and procedural pictures in it; it is drawn once."""
    data = work / ("toy_data" if toy else "drawn_data")
    if (data / SPLITS / "clinicdb_sequences.csv").is_file():
        return data
    (data / SPLITS).mkdir(parents=True, exist_ok=True)
    for name, short, seed in ((KVASIR, "kvasir", 3), (CLINICDB, "clinicdb", 8)):
        folder = data / name
        if not folder.is_dir():
            make_demo(folder, count=TOY_DRAWN if toy else DRAWN, seed=seed)
        stems = sorted(path.stem for path in (folder / "images").iterdir())
        for part, chosen in (("test", stems[:TESTED]), ("train", stems[TESTED:])):
            write_text(data / SPLITS / f"pranet_{short}_{part}.txt", "\n".join(chosen))
    rows = ["stem,sequence", *(f"{stem},s{index}" for index, stem in enumerate(stems))]
    write_text(data / SPLITS / "clinicdb_sequences.csv", "\n".join(rows))
    return data
