"""Building blocks of the HTML reports: one self-contained file, charts as inline SVG, no script, no network request.

The same input gives the same bytes. Colours are CSS variables, so charts follow the reader's light or dark mode.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape as _escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.config import without_places

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#010203", "#010204", "#010205"
"""Placeholders for the CSS variables `--ink`, `--muted` and `--rule` of the page; `_svg` replaces them."""

SERIES = ("#2f6fb3", "#d9772b", "#2f9169", "#a8509c", "#7a6a2a", "#b23a48")
"""Colours of `--series-1` and so on, in light mode."""

FONTS = "system-ui, 'Apple SD Gothic Neo', 'Noto Sans KR', 'Noto Sans CJK KR', 'Malgun Gothic', sans-serif"
"""Fonts of a chart's text, as in page.html."""

WIDTH = 8.0
"""Width of a chart in inches of 72 points; browsers scale it to the page."""

POINTS = 400
"""Most points of a curve; longer ones are averaged over neighbouring points."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Section:
    """One part of a page."""

    heading: str
    """Escaped; also in the table of contents."""
    body: str
    """Trusted HTML, made by the functions of this module."""
    intro: str = ""
    """A plain sentence or two above the body; escaped."""


def escape(text: object) -> str:
    """Text escaped for HTML; characters that HTML cannot hold (NUL, lone surrogates) become U+FFFD."""
    return _escape(_CONTROL.sub("\ufffd", str(text)), quote=True)


def page(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """A whole HTML document with a table of contents; write it as UTF-8."""
    return _CONTROL.sub("\ufffd", _template().render(title=title, sections=sections, subtitle=subtitle)) + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["trusted"] = Markup
    return environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def number(value: object) -> str:
    """A cell's text: 12,345 for whole numbers, four digits for others, – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.4g}"
    return str(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; everything is escaped, numbers are right-aligned, long text wraps."""
    rows = [[cell.item() if hasattr(cell, "item") else cell for cell in row] for row in rows]
    numeric = [_is_number_column([row[i] for row in rows]) for i in range(len(headers))]
    head = "".join(
        f'<th scope="col"{_NUMBER if is_number else ""}>{escape(header)}</th>'
        for header, is_number in zip(headers, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def settings(values: Mapping[str, Any]) -> str:
    """A table of settings, values but texts as JSON; reports are passed on, so places are shown by their last part."""
    shown = without_places(dict(values))
    rows = [[name, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)] for name, v in shown.items()]
    return table(["setting", "value"], rows)


_NUMBER = ' class="number"'


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_number_column(values: Sequence[object]) -> bool:
    return all(map(_is_number, values)) and any(value is not None for value in values)


def _cell(value: object) -> str:
    text = number(value)
    kind = _NUMBER if _is_number(value) else (' class="label"' if len(text) < 40 else "")
    return f"<td{kind}>{escape(text)}</td>"


def text(content: str, limit: int = 0) -> str:
    """A text with its own line breaks; beyond `limit` characters (0: never) only its beginning shows until it is unfolded."""
    if not content.strip():
        return '<p class="text note">(empty)</p>'
    if not limit or len(content) <= limit:
        return f'<p class="text">{escape(content)}</p>'
    return (
        f"<details><summary>{escape(' '.join(content[:160].split()))} … ({len(content):,} characters)</summary>"
        f'<p class="text">{escape(content)}</p></details>'
    )


def note(content: str) -> str:
    """A muted sentence."""
    return f'<p class="note">{escape(content)}</p>'


def example(heading: str, parts: Mapping[str, str], aside: str = "") -> str:
    """One example: named parts, each trusted HTML from `text` or `table`; heading, names and `aside` are escaped."""
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{body}</dd>" for name, body in parts.items())
    small = f"<small>{escape(aside)}</small>" if aside else ""
    return f'<div class="example"><h3>{escape(heading)}{small}</h3><dl>\n{items}\n</dl></div>'


def histogram(series: Mapping[str, Mapping[str, Any]], xlabel: str) -> str:
    """Histograms one below the other, one for each series, on a common axis where their ranges are similar.

    Args:
        series: name → a summary of `hanflow.metrics.lengths.summary`.
        xlabel: what is counted, e.g. "tokens".

    Returns:
        Inline SVG.
    """
    if not series:
        return note("Nothing to show.")
    tops = [float(values["edges"][-1]) for values in series.values() if values["rows"]] or [1.0]
    shared = max(tops) <= 3 * max(min(tops), 1.0)
    with _style():
        figure = _figure(0.45 + 1.6 * len(series))
        panels = figure.subplots(len(series), 1, squeeze=False, sharex=shared)[:, 0]
        for i, (axes, (name, values)) in enumerate(zip(panels, series.items(), strict=True)):
            edges, counts = values["edges"], values["counts"]
            widths = [right - left for left, right in itertools.pairwise(edges)]
            color = SERIES[i % len(SERIES)]
            axes.bar(edges[:-1], counts, widths, align="edge", color=color, edgecolor="none", alpha=0.85)
            axes.set_xlim(0, max(tops) if shared else edges[-1])
            axes.set_ylim(0, 1.05 * max(*counts, 1))
            summary = "no rows"
            if values["rows"]:
                summary = (
                    f"{values['rows']:,} rows · mean {values['mean']:.1f} · median {values['median']:.0f} · "
                    f"95 % ≤ {values['p95']:.0f} · longest {values['max']:,}"
                )
                axes.axvline(values["median"], color=INK, linewidth=1, linestyle=(0, (3, 2)))
            axes.set_title(_plain(name), loc="left", color=INK, fontweight="bold")
            axes.set_title(summary, loc="right", color=MUTED)
            axes.set_ylabel("rows")
            _integer_axis(axes)
        panels[-1].set_xlabel(f"{_plain(xlabel)} (dashed: median; the last bar includes everything longer)")
        return _svg(figure, f"Histogram of {xlabel}: {', '.join(series)}")


def lines(series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> str:
    """Curves over one pair of axes; series without points are left out.

    Args:
        series: name → (x, y) points; fewer than 30 of them are marked by dots, more than POINTS are averaged.

    Returns:
        Inline SVG.
    """
    drawn = {name: thinned(points) for name, points in series.items() if len(points)}
    if not drawn:
        return note("Nothing was recorded.")
    with _style():
        figure = _figure(3.3)
        axes = figure.subplots()
        for i, (name, points) in enumerate(drawn.items()):
            xs, ys = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else None
            # A single point would be invisible as a line.
            axes.plot(xs, ys, color=SERIES[i % len(SERIES)], label=_plain(name), marker=marker, markersize=3.5)
        axes.set_xlabel(_plain(xlabel))
        axes.set_ylabel(_plain(ylabel))
        axes.grid(True, axis="y", color=RULE, linewidth=0.8)
        axes.margins(x=0.02)
        if len(drawn) > 1:
            axes.legend(loc="best", frameon=False, labelcolor=INK)
        return _svg(figure, f"{ylabel} over {xlabel}: {', '.join(drawn)}")


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of neighbouring ones."""
    if len(points) <= most:
        return list(points)
    import numpy as np

    groups = np.array_split(np.array(points, dtype=np.float64), most)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def _plain(label: str) -> str:
    """A label without the lone surrogates that matplotlib refuses."""
    return _CONTROL.sub("\ufffd", label)


def _integer_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.tick_params(axis="x", labelbottom=True)


def _style() -> Any:
    from matplotlib import style

    # From matplotlib's defaults, not from the matplotlibrc of whoever runs it.
    return style.context(
        [
            "default",
            {
                "font.sans-serif": ["DejaVu Sans"],
                "svg.fonttype": "none",  # keep text as text: searchable, and shown in the reader's own Korean font
                "svg.hashsalt": "hanflow",
                "text.parse_math": False,  # a $ in a name is no formula
                "font.size": 9,
                "axes.titlesize": 9,
                "axes.edgecolor": RULE,
                "axes.labelcolor": MUTED,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelsize": 8,
                "ytick.labelsize": 8,
                "lines.linewidth": 1.8,
            },
        ]
    )


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    # pyplot would keep the figure and look for a display.
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element with the page's colours and fonts, and ids that are unique on the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in Korean: the browser has the font
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    prefix = "c" + hashlib.sha256((label + svg).encode("utf-8", "replace")).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for color, variable in ((INK, "ink"), (MUTED, "muted"), (RULE, "rule")):
        svg = svg.replace(color, f"var(--{variable})")
    for i, color in enumerate(SERIES, start=1):
        svg = svg.replace(color, f"var(--series-{i})")
    svg = svg.replace('<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', "")  # leaks out
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, svg)
    return svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{escape(label)}" ', 1).strip()
