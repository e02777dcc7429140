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
"""The console of a command: irrelevant warnings are hidden, progress bars need a terminal."""

from __future__ import annotations

import sys
import warnings

# First words of warnings of other packages that need no action by a user.
IRRELEVANT_WARNINGS = (
    # MONAI's LoadImage makes an instance of every reader it knows, whichever a config names.
    "NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register",
    # MONAI's MetricsSaver, where an image has no value of a metric: an empty label has no box, nor a surface.
    "Mean of empty slice",
    "All-NaN slice encountered",
    "Degrees of freedom <= 0 for slice",
)


def hide_irrelevant_warnings() -> None:
    """Hide warnings of other packages that need no action by a user; ``configs/logging.conf`` does so for logs.

    Configs call it in ``run``, so it holds for commands only.
    """
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def in_terminal() -> bool:
    """Return whether stderr is a terminal: progress bars are for terminals, not for files."""
    return sys.stderr.isatty()
