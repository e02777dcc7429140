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
"""Run commands one after the other in a process that imports once: ``python -m tests.workflows.commands_of_a_plan``."""

from __future__ import annotations

import json
import sys

from monai.bundle import run


def main() -> None:
    """Run what the JSON on the standard input lists: the id, and the arguments."""
    for run_id, arguments in json.load(sys.stdin):
        print(f"--- {run_id}", flush=True)
        run(run_id=run_id, **arguments)
    print("--- done", flush=True)


if __name__ == "__main__":
    main()
