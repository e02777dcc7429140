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
"""Importing the network alone is fast: MONAI, which imports whatever it knows and finds installed, stays out."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

SLOW = ("monai", "ignite", "transformers", "peft", "mlflow", "matplotlib")


def test_the_network_does_not_wait_for_monai() -> None:
    program = f"import sys, bundle.sam_sp; print([name for name in {SLOW} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
