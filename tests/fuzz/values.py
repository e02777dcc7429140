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
"""Strategies of hypothesis: files that are damaged a little, and values that almost fit."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bundle.core.setting_rules import RULES
from tests.fuzz import seeds

# Where most of what a reader decides by stands.
HEADER = 400
# Numbers, words and nothing at all that a mistake or an attack would write.
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["", " ", "none", "nan", "1e999", "-1", "true", "../..", "/etc/passwd", "$import os", "@x", "%x",
                     "0", 2**63, -(2**31), 1e308, "\x00", "self", "all"]),
)  # fmt: skip
NESTED = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.one_of(st.integers(-3, 12), st.floats(-3, 12), ODD)


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """Return the file of a name with some bytes overwritten, put in, taken out or cut off."""
    content = bytearray(seeds.seed(name))
    for _ in range(draw(st.integers(1, 4))):
        most = max(len(content), 1) - 1
        place = draw(st.one_of(st.integers(0, min(HEADER, most)), st.integers(0, most)))
        kind = draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "flip", "insert", "delete", "cut"]))
        if kind == "overwrite":
            new = draw(st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\x00" * 4, b"\xff" * 4])))
            content[place : place + len(new)] = new
        elif kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del content[place : place + draw(st.integers(1, 16))]
        elif kind == "cut":
            del content[place:]
    return bytes(content)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """Return a JSON value with a part replaced, left out or added, at any depth."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(NESTED)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        return [draw(altered(item)) if index == place else item for index, item in enumerate(value)]
    key = draw(st.sampled_from(sorted(value)))
    kind = draw(st.sampled_from(["alter", "alter", "leave out", "add"]))
    if kind == "add":
        return {**value, draw(st.text(max_size=8)): draw(NESTED)}
    return {k: draw(altered(v)) if k == key else v for k, v in value.items() if k != key or kind == "alter"}


# Settings as a config or a command line gives them: mostly known names, also mistyped ones.
SETTINGS = st.dictionaries(
    st.one_of(st.sampled_from(sorted(RULES)), st.text(max_size=12)), st.one_of(ODD, NESTED), min_size=1, max_size=6
)
COORDINATES = st.lists(NUMBERS, max_size=7) | NESTED
CLICKS = st.dictionaries(
    st.sampled_from(["foreground", "background", "polyp", "1", "x"]),
    st.lists(COORDINATES, max_size=3) | NESTED,
    max_size=3,
)
# User prompts of one image, as a JSON file or the parameters of a request have them.
PROMPTS = st.fixed_dictionaries(
    {},
    optional={
        "boxes": st.one_of(COORDINATES, st.lists(COORDINATES, max_size=3),
                           st.dictionaries(st.sampled_from(["polyp", "tool", "1", "3"]), COORDINATES, max_size=3)),
        "points": CLICKS | st.dictionaries(st.sampled_from(["polyp", "tool", "2"]), CLICKS, max_size=2) | NESTED,
        "foreground": st.lists(COORDINATES, max_size=3) | NESTED,
        "background": st.lists(COORDINATES, max_size=3) | NESTED,
        "polyp": st.lists(COORDINATES, max_size=3) | NESTED,
        "label": st.one_of(st.sampled_from(["polyp", "Tool", "1", "9"]), NESTED),
    },
)  # fmt: skip
