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
"""Connected components of masks, exact and on the device: no loop over images, and no value is read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Components(NamedTuple):
    """The M largest connected components of masks, the largest first; of equal ones the first in reading order."""

    first_xy: torch.Tensor  # (B, K, M, 2), first column and row of each, in pixels of the mask
    last_xy: torch.Tensor  # (B, K, M, 2), last column and row
    valid: torch.Tensor  # (B, K, M), bool: whether there is such a component
    left_out: torch.Tensor  # (B, K, h, w), bool: the pixels of components after these


def can_read(x: torch.Tensor) -> bool:
    """Return whether a value of a tensor may decide what runs: on a CPU, and where no graph is recorded."""
    return x.device.type == "cpu" and not is_recorded()


def is_recorded() -> bool:
    """Return whether a graph is recorded, of which every run must do the same: traced, exported or compiled."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def largest_components(mask: torch.Tensor, most: int, least: int = 1) -> Components:
    """Find the largest connected components of each mask, with 8-connectivity.

    Args:
        mask: (B, K, h, w), bool.
        most: M, or as many as such a mask can have, where that is less.
        least: pixels of the smallest component that counts.
    """
    b, k, h, w = mask.shape
    labels = label_components(mask).flatten(0, 1).flatten(1)
    n = ((h + 1) // 2) * ((w + 1) // 2)
    most = min(most, n)
    zeros = torch.zeros_like(labels[:, :1]).repeat(1, n + 1)
    size = zeros.scatter_add(1, labels, mask.flatten(0, 1).flatten(1).long())
    size = torch.where(size < least, 0, size)
    _, chosen = (size * (n + 1) + n - _index_like(size)).topk(most)  # no two are equal: the order is always the same
    valid = size.gather(1, chosen) > 0

    rows = mask.flatten(0, 1)
    columns = rows.transpose(1, 2)
    first, last = [], []
    for place in (_index_like(rows), _index_like(columns).transpose(1, 2)):  # x, y
        flat = place.flatten(1)
        first.append((zeros + max(h, w)).scatter_reduce(1, labels, flat, "amin").gather(1, chosen))
        last.append(zeros.scatter_reduce(1, labels, flat, "amax").gather(1, chosen))
    left_out = (size > 0).scatter(1, chosen, torch.zeros_like(valid)).gather(1, labels)
    return Components(
        torch.stack(first, dim=-1).reshape(b, k, most, 2),
        torch.stack(last, dim=-1).reshape(b, k, most, 2),
        valid.reshape(b, k, most),
        left_out.reshape(b, k, h, w),
    )


def label_components(mask: torch.Tensor) -> torch.Tensor:
    """Number the connected components of each mask, with 8-connectivity.

    The pixels of a block of 2 x 2 all touch, so blocks are joined. In each round a component joins that of the lowest
    number next to it (Boruvka's algorithm), which at least halves the components of what is connected: with N blocks,
    log2(N) rounds are enough for every mask, spirals and combs too (on a CPU, where a look costs nothing, they end
    when nothing joins). Each join is a chain of at most as many components
    as are left, which halving the way to its end again and again follows in as many steps as the rounds that are left.

    Args:
        mask: (B, K, h, w), bool.

    Returns:
        (B, K, h, w), long: from 1 in reading order of the components' first blocks, with gaps; 0 is background.
    """
    b, k, h, w = mask.shape
    padded = F.pad(mask.float(), (0, w % 2, 0, h % 2)) > 0
    rows, columns = (h + 1) // 2, (w + 1) // 2
    parent = _join(_neighbors(padded.flatten(0, 1)), rounds=int(rows * columns - 1).bit_length())
    first = _lowest(parent, _index_like(parent)).gather(1, parent)[:, :-1].reshape(b, k, rows, columns)
    pixels = first.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., :h, :w]
    return torch.where(mask, pixels + 1, 0)


def _index_like(x: torch.Tensor) -> torch.Tensor:
    """Return 0..n-1 along the last axis, (R, n), long; arange would tie a traced graph to a device."""
    return torch.ones_like(x, dtype=torch.long).cumsum(dim=-1) - 1


def _neighbors(mask: torch.Tensor) -> torch.Tensor:
    """Masks (R, 2 * rows, 2 * columns) -> the blocks next to each block that it touches, (R, 8, N); N where none is."""
    a, b, c, d = mask[:, ::2, ::2], mask[:, ::2, 1::2], mask[:, 1::2, ::2], mask[:, 1::2, 1::2]
    rows, columns = a.shape[1:]
    n = rows * columns
    index = _index_like(a.flatten(1)).reshape(-1, rows, columns)
    # what a block has towards another, the step to that one, and what the other one has towards it
    sides = (
        (b | d, (0, 1), a | c), (a | c, (0, -1), b | d), (c | d, (1, 0), a | b), (a | b, (-1, 0), c | d),
        (d, (1, 1), a), (a, (-1, -1), d), (c, (1, -1), b), (b, (-1, 1), c),
    )  # fmt: skip
    found = [
        torch.where(own & _shift(other.long(), step, 0).bool(), _shift(index, step, n), n) for own, step, other in sides
    ]
    return torch.stack(found, dim=1).flatten(2)


def _shift(x: torch.Tensor, step: tuple[int, int], fill: int) -> torch.Tensor:
    """Return the values that lie a step (down, right) away, (R, rows, columns); ``fill`` outside."""
    rows, columns = x.shape[1:]
    down, right = step
    padded = F.pad(x, (1, 1, 1, 1), value=fill)
    return padded[:, 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]


def _join(neighbors: torch.Tensor, rounds: int) -> torch.Tensor:
    """Neighbors (R, 8, N) of blocks -> a block that stands for each one's component, (R, N + 1); N stands for none."""
    r, _, n = neighbors.shape
    index = _index_like(F.pad(neighbors[:, 0], (0, 1)))
    parent = index
    for number in range(rounds):
        before = parent
        near = parent.gather(1, neighbors.flatten(1)).reshape(r, -1, n)
        other = torch.where(near == parent[:, None, :-1], n, near).amin(dim=1)
        target = _lowest(parent, F.pad(other, (0, 1), value=n))
        target = torch.where(target < n, target, parent)
        # two that choose each other: the lower one stays. Longer circles cannot be, for all choose the lowest.
        mutual = (target.gather(1, target) == index) & (index < target)
        parent = torch.where(mutual, index, target)
        if can_read(parent) and torch.equal(parent, before):
            break
        for _ in range(rounds - number):
            parent = parent.gather(1, parent)
    return parent


def _lowest(group: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the lowest of the values (R, n) in each group (R, n) of 0..n-1, at the place of its number; else n - 1."""
    most = torch.full_like(values, values.shape[-1] - 1)
    return most.scatter_reduce(1, group, values, "amin")
