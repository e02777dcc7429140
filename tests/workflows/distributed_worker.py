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
"""Run by torchrun in `test_distributed`: a training and an evaluation in one group of processes.

    torchrun --nproc_per_node 2 -m tests.workflows.distributed_worker OPTIONS

OPTIONS is a JSON file with ``root``, and with the knobs of ``training`` and of ``evaluating``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bundle.core import distributed
from tests.workflows.commands import EVALUATE, TRAIN, command

if __name__ == "__main__":
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    configs = Path(TRAIN).parent
    train, evaluate = [TRAIN, str(configs / "multi_gpu_train.json")], str(configs / "multi_gpu_evaluate.json")
    command("training", train, Path(options["root"]), **options["training"], finalize=[])
    command("evaluating", [*EVALUATE, evaluate], Path(options["root"]), **options["evaluating"], finalize=[])
    distributed.stop()
