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
"""Write a file again and again, with another content each time.

python -m tests.core.endless_writer FILE
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import torch

from bundle.core.files import write_atomically


def save(path: Path, number: int) -> None:
    write_atomically(path, lambda partial: torch.save({"values": torch.full((300_000,), number)}, partial))


if __name__ == "__main__":
    for number in count():
        save(Path(sys.argv[1]), number)
