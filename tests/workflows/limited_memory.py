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
"""A training in a process that may have 400 MB more than it has at its start.

python -m tests.workflows.limited_memory BUNDLE_ROOT DATASET_DIR OUTPUT_DIR
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from monai.bundle import run

from tests.workflows.commands import FILES, SMALL, TRAIN

MORE = 400 * 2**20

if __name__ == "__main__":
    root, dataset, output = sys.argv[1:]
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + MORE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    settings = {**SMALL, "image_size": 512, "batch_size": 8, "cache": 0, "disk_cache": 0}
    places = {"bundle_root": root, "dataset_dir": dataset, "output_dir": output}
    places = {"bundle_root": root, "dataset_dir": dataset, "output_dir": output}
    run(run_id="training", config_file=TRAIN, **places, **FILES, **settings)
