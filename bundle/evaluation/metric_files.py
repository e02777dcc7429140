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
"""The tables of metrics that MONAI writes, each in one step."""

from __future__ import annotations

from pathlib import Path

from ignite.engine import Engine
from monai.handlers import MetricsSaver

from bundle.core.files import write_together


class WholeMetricsSaver(MetricsSaver):
    """MONAI's `MetricsSaver`, whose files appear whole; arguments as there."""

    def __call__(self, engine: Engine) -> None:
        """Write the files of an evaluation; all of several processes call it, and the first one writes."""
        folder = self.save_dir

        def write(partial: Path) -> None:
            self.save_dir = str(partial)
            super(WholeMetricsSaver, self).__call__(engine)

        try:
            write_together(folder, write)
        finally:
            self.save_dir = folder
