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
"""Published files of weights: what they are called, where they come from, and their sha256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A file of Meta's releases (Apache-2.0), which is downloaded once.

    Attributes:
        file: its name, at Meta's and in ``models/base``.
        sha256: of the file.
        megabytes: its size, for an error.
        base_url: address in front of the name; None for that of the first SAM.
    """

    file: str
    sha256: str
    megabytes: int
    base_url: str | None = None


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A file of another project.

    Attributes:
        file: its name in ``models/base``.
        source: where to get it, for an error.
        sha256: of the official file; None where it is not known.
        package: a distribution that contains the file, if there is one.
        member: the path of the file in that distribution.
    """

    file: str
    source: str
    sha256: str | None = None
    package: str | None = None
    member: str | None = None


PublishedCheckpoint = OfficialCheckpoint | ForeignCheckpoint
