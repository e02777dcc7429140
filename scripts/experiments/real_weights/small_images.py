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
"""Images as they traveled to a GPU machine with a limit on what it takes: smaller, and through WebP with losses."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from bundle.core.files import write_atomically
from bundle.data.folder_pairs import pair_folder
from bundle.data.image_files import open_mask, open_rgb

LONGEST_SIDE, QUALITY = 512, 80


def write_small(source: Path, folder: Path) -> Path:
    """Write the ``images`` and ``masks`` of a folder smaller, as PNG; those that are there stay.

    Args:
        source: ``images`` and ``masks``, as for any training.
        folder: folder to write.

    Returns:
        The folder.
    """
    for record in tqdm(pair_folder(source).records, desc=f"{source.name}, smaller", disable=None):
        image, mask = Path(record["image"]), Path(record["label"])
        places = [folder / kind / f"{path.stem}.png" for kind, path in (("images", image), ("masks", mask))]
        if not all(place.is_file() for place in places):
            _save(through_webp(open_rgb(image)), places[0])
            _save(smaller_mask(Image.fromarray(open_mask(mask))), places[1])
    return folder


def through_webp(picture: Image.Image) -> Image.Image:
    """Return a picture with its longest side at most `LONGEST_SIDE`, as WebP of `QUALITY` gives it back."""
    buffer = io.BytesIO()
    picture.resize(_size(picture), Image.Resampling.LANCZOS).save(buffer, format="WEBP", quality=QUALITY, method=4)
    return Image.open(buffer).convert("RGB")


def smaller_mask(mask: Image.Image) -> Image.Image:
    """Return a mask of 0 and 255 in the size of its picture: a pixel is marked where half of what it covers is."""
    averaged = mask.convert("L").resize(_size(mask), Image.Resampling.BOX)
    return averaged.point(lambda value: 255 if value >= 128 else 0)


def _size(picture: Image.Image) -> tuple[int, int]:
    share = min(1.0, LONGEST_SIDE / max(picture.size))
    return max(1, round(picture.width * share)), max(1, round(picture.height * share))


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"), flush=False)
