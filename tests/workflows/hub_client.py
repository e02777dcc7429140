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
"""Run by `test_zip` in a process of its own: Python modules one after the other, as ``python -m`` runs them.

    python hub_client.py '[["MODULE", "OPTION", ...], ...]'

Where the hub is, is read when its client is imported, so these cannot be forks of a process that has it.
"""

from __future__ import annotations

import json
import runpy
import sys

for words in json.loads(sys.argv[1]):
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
