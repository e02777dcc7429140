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
"""Figures of a report as inline SVG: curves, a histogram, a scatter plot, an interval.

Colors are classes of the page's style sheet, so that a figure follows a dark page and a print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bundle.evaluation.bootstrap import Interval

WIDTH, HEIGHT = 520, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 14, 44
LINE_HEIGHT = 15


@dataclass(frozen=True)
class Series:
    """A curve: its name, the class of its color, and points (x, y) in the order of x; y may be None, a gap."""

    name: str
    color: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot: its place, whether it is a failure, and what it says when it is pointed at."""

    x: float
    y: float
    failed: bool
    title: str


@dataclass(frozen=True)
class Axes:
    """The area of a figure, and the functions from values to its coordinates."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    right: float = RIGHT


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about ``count``."""
    rough = max(high - low, 1e-9) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_curves(
    series: Sequence[Series], y_title: str, low: float, high: float, mark: tuple[float, str] | None = None
) -> Markup:
    """Draw curves over epochs, each with its name at its end.

    Args:
        series: at least one point in all.
        y_title: of the vertical axis.
        low: its lower end.
        high: its upper end.
        mark: an epoch with a line, and what stands there.
    """
    epochs = [x for one in series for x, _ in one.points]
    right = 12 + 7 * max(len(one.name) for one in series)
    axes = _axes(min(epochs), max(epochs), low, high, right)
    parts = [_frame(axes, whole_ticks(min(epochs), max(epochs)), ticks(low, high), "epoch", y_title)]
    if mark is not None:
        x = axes.x(mark[0])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor = "end" if x > (WIDTH - right + LEFT) / 2 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(_text(x + shift, HEIGHT - BOTTOM - 6, mark[1], anchor, "small"))
    ends = []
    for one in series:
        known = [(axes.x(x), axes.y(y)) for x, y in one.points if y is not None]
        parts.append(_line(known, one.color))
        if known:
            ends.append((known[-1], one))
    for (x, y), one in _spread(ends):
        parts.append(_text(x + 7, y + 4, one.name, "start", f"label {one.color}"))
    return _svg(parts, f"{y_title} by epoch")


def whole_ticks(low: float, high: float) -> list[float]:
    """Return ticks that are whole numbers."""
    return [value for value in ticks(low, high) if value == int(value)] or [low]


def _line(points: Sequence[tuple[float, float]], color: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = points if len(points) <= 12 else points[-1:]
    circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in dots)
    return f'<g class="curve {color}"><polyline points="{path}"/>{circles}</g>'


def _spread(ends: list[tuple[tuple[float, float], Series]]) -> list[tuple[tuple[float, float], Series]]:
    """Move labels at the ends of curves apart, downward, and up again where they leave the figure."""
    placed: list[tuple[tuple[float, float], Series]] = []
    least = -math.inf
    for (x, y), one in sorted(ends, key=lambda end: end[0][1]):
        least = max(y, least + LINE_HEIGHT)
        placed.append(((x, least), one))
    excess = max(0.0, least - (HEIGHT - BOTTOM))
    return [((x, y - excess), one) for (x, y), one in placed]


def draw_histogram(values: Sequence[float], median: float, x_title: str, unit: str) -> Markup:
    """Draw how many of the values 0..1 lie in each of 20 bins, with a line at their median.

    Args:
        values: at least one.
        median: of them.
        x_title: of the horizontal axis.
        unit: what the values are of, such as "images".
    """
    counts = [0] * 20
    for value in values:
        counts[min(int(value * 20), 19)] += 1
    most = max(counts)
    axes = _axes(0, 1, 0, 1.12 * most)  # with room for the median's number
    parts = [_frame(axes, ticks(0, 1), whole_ticks(0, most), x_title, unit)]
    for place, count in enumerate(counts):
        left, right, top = axes.x(place / 20), axes.x((place + 1) / 20), axes.y(count)
        title = f"<title>{place / 20:.2f} to {(place + 1) / 20:.2f}: {count}</title>"
        size = f'width="{right - left - 1:.1f}" height="{HEIGHT - BOTTOM - top:.1f}"'
        parts.append(f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" {size}>{title}</rect>')
    x = axes.x(median)
    parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    anchor, shift = ("end", -5) if median > 0.3 else ("start", 5)
    parts.append(_text(x + shift, TOP + 8, f"median {median:.3f}", anchor, "label"))
    return _svg(parts, f"distribution of {x_title} over {unit}")


def draw_scatter(points: Sequence[Point], x_title: str, y_title: str) -> Markup:
    """Draw points over a logarithmic axis; y is 0..1, and x above 0."""
    exponents = [math.log10(point.x) for point in points]
    low, high = math.floor(min(exponents) - 1e-9), math.ceil(max(exponents) + 1e-9)
    axes = _axes(low, high, 0, 1)
    parts = [_frame(axes, list(range(low, high + 1)), ticks(0, 1), x_title, y_title, lambda value: f"{10**value:g}")]
    parts += [
        _mark(point, axes.x(exponent), axes.y(point.y)) for point, exponent in zip(points, exponents, strict=True)
    ]
    return _svg(parts, f"{y_title} against {x_title}")


def draw_diagonal(points: Sequence[Point], means: Sequence[tuple[float, float]], x_title: str, y_title: str) -> Markup:
    """Draw points whose values are 0..1, the line on which both are equal, and a curve of means (x, y)."""
    axes = _axes(0, 1, 0, 1)
    parts = [_frame(axes, ticks(0, 1), ticks(0, 1), x_title, y_title)]
    ends = f'x1="{axes.x(0):.1f}" y1="{axes.y(0):.1f}" x2="{axes.x(1):.1f}" y2="{axes.y(1):.1f}"'
    parts.append(f'<line class="mark" {ends}/>')
    parts += [_mark(point, axes.x(point.x), axes.y(point.y)) for point in points]
    parts.append(_line([(axes.x(x), axes.y(y)) for x, y in means], "box"))
    return _svg(parts, f"{y_title} against {x_title}")


def _mark(point: Point, x: float, y: float) -> str:
    title = f"<title>{escape(point.title)}</title>"
    if point.failed:
        return f'<path class="failed" d="M{x:.1f},{y - 5:.1f}l5,5l-5,5l-5,-5z">{title}</path>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'


def draw_interval(value: Interval) -> Markup:
    """Draw a mean of 0..1 and its interval as a small bar for a table."""
    width, middle = 120, 8
    low, mean, high = (4 + (width - 8) * min(max(end, 0.0), 1.0) for end in (value.low, value.mean, value.high))
    parts = [
        f'<line class="grid" x1="4" x2="{width - 4}" y1="{middle}" y2="{middle}"/>',
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<circle class="mean" cx="{mean:.1f}" cy="{middle}" r="3.5"/>',
    ]
    return Markup(f'<svg class="interval" viewBox="0 0 {width} 16" aria-hidden="true">{"".join(parts)}</svg>')


def _axes(x_low: float, x_high: float, y_low: float, y_high: float, right: float = RIGHT) -> Axes:
    x_span, y_span = (x_high - x_low) or 1, (y_high - y_low) or 1
    return Axes(
        lambda x: LEFT + (WIDTH - LEFT - right) * (x - x_low) / x_span,
        lambda y: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - y_low) / y_span,
        right,
    )


def _frame(
    axes: Axes,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_title: str,
    y_title: str,
    form: Callable[[float], str] = "{:g}".format,
) -> str:
    """Draw the base line, light lines across, the numbers of the ticks, and the titles of both axes."""
    end = WIDTH - axes.right
    parts = []
    for value in y_ticks:
        y = axes.y(value)
        kind = "axis" if value == y_ticks[0] else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 7, y + 4, f"{value:g}", "end", "tick"))
    parts += [_text(axes.x(value), HEIGHT - BOTTOM + 17, form(value), "middle", "tick") for value in x_ticks]
    parts.append(_text((LEFT + end) / 2, HEIGHT - 6, x_title, "middle", "title"))
    turned = f'transform="rotate(-90 11 {(HEIGHT - BOTTOM + TOP) / 2:.1f})"'
    parts.append(_text(11, (HEIGHT - BOTTOM + TOP) / 2, y_title, "middle", "title", turned))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, kind: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _svg(parts: Sequence[str], name: str) -> Markup:
    start = f'<svg class="figure" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
    return Markup(f"{start}{''.join(parts)}</svg>")
