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
"""Errors that are the user's to mend."""

from __future__ import annotations

from bundle.core.errors import BundleError, find_bundle_error


def test_a_wrapped_error_is_found() -> None:
    try:
        try:
            raise BundleError("the sentence")
        except BundleError as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as outer:
        assert str(find_bundle_error(outer)) == "the sentence"
    assert find_bundle_error(ValueError("other")) is None
