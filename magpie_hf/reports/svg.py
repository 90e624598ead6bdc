"""Charts as SVG: bars, histograms, funnels and small maps, without a library, scripts, or information by color alone.

The colors are those of Okabe and Ito, which color-blind readers can distinguish. They are CSS variables with these values
as fallback, so that one chart fits light and dark pages. Widths are in the units of the picture and scale with the page.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..storage.state import JsonObject


if TYPE_CHECKING:
    from datasets import Dataset

    from .statistics import FloatArray, Histogram

WIDTH = 420
ROW = 24
LABEL_CHARACTERS = 26
BLUE, ORANGE, GREEN, INK, FAINT = (
    "var(--c1, #0072B2)", "var(--c2, #D55E00)", "var(--c3, #009E73)", "var(--ink, #1b1f24)", "var(--line, #c9ced6)",
)  # fmt: skip
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_STYLE = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:12.5px"


def svg_charts(dataset: Dataset) -> dict[str, str]:
    """Return the charts of a dataset as standalone SVG files, by column."""
    from .statistics import dataset_statistics

    facts = dataset_statistics(dataset)
    charts = {name: bars(shares(entry["counts"]), title=name) for name, entry in facts["labels"].items()}
    charts |= {
        name: histogram(entry["histogram"], title=name) for name, entry in facts["numbers"].items() if entry["count"]
    }
    return {name: standalone(text) for name, text in charts.items()}


def standalone(text: str) -> str:
    """Return a chart as a standalone file with a white background."""
    start = text.index(">") + 1
    head = text[:start].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f'{head}<rect width="100%" height="100%" fill="#ffffff"/>{text[start:]}'


def shares(counts: Mapping[str, int], most: int = 14) -> list[tuple[str, float, str]]:
    """Return (label, share, text) of counts; beyond `most` entries, the rest is added up as "N others"."""
    total = sum(counts.values()) or 1
    entries = list(counts.items())
    if len(entries) > most:
        rest = sum(count for _, count in entries[most - 1 :])
        entries = [*entries[: most - 1], (f"{len(entries) - most + 1} others", rest)]
    return [(label, count / total, f"{percent(count / total)} · {count:,}") for label, count in entries]


def percent(share: float) -> str:
    """Return a share as "12 %", with one decimal below 10 and above 99."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 10 or 99 < value < 100 else f"{value:.0f} %"


def bars(entries: Sequence[tuple[str, float, str]], *, title: str, color: str = BLUE) -> str:
    """Return horizontal bars with a text after each; lengths are relative to the largest."""
    most = max((value for _, value, _ in entries), default=0) or 1
    left, longest = 152, WIDTH - 152 - 112
    rows = []
    for number, (label, value, text) in enumerate(entries):
        y = number * ROW
        width = max(1.5 if value else 0, longest * value / most)
        shown = label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"
        rows.append(
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end" fill="{INK}"><title>{safe(label)}</title>{safe(shown)}</text>'
            f'<rect x="{left}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" rx="2" fill="{color}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 16}" fill="{INK}">{safe(text)}</text>'
        )
    return _picture(max(1, len(entries)) * ROW + 4, title, "".join(rows))


def histogram(facts: Histogram, *, title: str, unit: str = "", color: str = BLUE) -> str:
    """Return a histogram with its axis."""
    counts, edges = facts["counts"], facts["edges"]
    most = max(counts) or 1
    height, left = 120, 6
    step = (WIDTH - 2 * left) / len(counts)
    parts = [
        f'<rect x="{left + n * step + 0.5:.1f}" y="{height - height * count / most:.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / most:.1f}" fill="{color}"><title>{count:,}: {compact(edges[n])} to '
        f"{compact(edges[n + 1])}</title></rect>"
        for n, count in enumerate(counts)
    ]
    parts.append(f'<line x1="{left}" x2="{WIDTH - left}" y1="{height}" y2="{height}" stroke="{FAINT}"/>')
    for n in range(5):
        at = n / 4
        value = edges[0] + at * (edges[-1] - edges[0])
        anchor = ("start", "middle", "middle", "middle", "end")[n]
        parts.append(
            f'<text x="{left + at * (WIDTH - 2 * left):.1f}" y="{height + 16}" text-anchor="{anchor}" fill="{INK}">'
            f"{compact(value)}</text>"
        )
    if unit:
        parts.append(f'<text x="{WIDTH / 2}" y="{height + 34}" text-anchor="middle" fill="{INK}">{safe(unit)}</text>')
    return _picture(height + (40 if unit else 22), title, "".join(parts))


def funnel(steps: Sequence[JsonObject], *, title: str) -> str:
    """Return how many rows each condition kept: for each, a bar of the rows in with a bar of the rows out on top."""
    if not steps:
        return ""
    most = max(step["rows_in"] for step in steps) or 1
    rows = []
    for number, step in enumerate(steps):
        y = number * 44
        before, after = WIDTH * step["rows_in"] / most, WIDTH * step["rows_out"] / most
        text = f"{step['rows_out']:,} of {step['rows_in']:,} rows"
        condition = str(step["condition"])
        shown = condition if len(condition) <= 42 else condition[:41] + "…"
        rows.append(
            f'<text x="0" y="{y + 13}" fill="{INK}"><title>{safe(condition)}</title>{safe(shown)}</text>'
            f'<text x="{WIDTH}" y="{y + 13}" text-anchor="end" fill="{INK}">{text}</text>'
            f'<rect x="0" y="{y + 19}" width="{before:.1f}" height="14" rx="2" fill="{FAINT}"/>'
            f'<rect x="0" y="{y + 19}" width="{after:.1f}" height="14" rx="2" fill="{BLUE}"/>'
        )
    return _picture(len(steps) * 44, title, "".join(rows))


def points(xy: FloatArray, *, size: float = 200, radius: float = 1.6) -> str:
    """Return circles at (number, 2) positions in [0, 1], as one path: small even for thousands.

    A dot is a very short line with round ends, because some renderers draw nothing for a line of length 0.
    """
    parts = [f"M{4 + x * (size - 8):.1f} {4 + y * (size - 8):.1f}h.01" for x, y in xy]
    return f'<path d="{"".join(parts)}" stroke-width="{2 * radius}" stroke-linecap="round" fill="none"/>'


def small_map(background: str, foreground: str, *, title: str, size: int = 200) -> str:
    """Return a map: `background` is the id of the points that all maps share, `foreground` the points of this one."""
    return (
        f'<svg role="img" aria-label="{safe(title)}" viewBox="0 0 {size} {size}" width="100%">'
        f"<title>{safe(title)}</title>"
        f'<use href="#{safe(background)}" stroke="{FAINT}"/><g stroke="{BLUE}">{foreground}</g></svg>'
    )


def _picture(height: float, title: str, inside: str) -> str:
    return (
        f'<svg role="img" aria-label="{safe(title)}" viewBox="0 0 {WIDTH} {height:.0f}" width="100%" '
        f'style="{_STYLE}"><title>{safe(title)}</title>{inside}</svg>'
    )


def safe(text: object) -> str:
    """Return a text for SVG and HTML: escaped, without characters that XML forbids or that change the text direction."""
    return escape("".join(visible(c) for c in str(text)))


def visible(character: str) -> str:
    """Return a character, or the replacement character for control characters and those that change the direction."""
    if character in "\n\t\u200c\u200d":  # the joiners are part of emoji and of some scripts
        return character
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in _HIDDEN else character


def compact(value: float) -> str:
    """Return a number in short form for an axis: 1.2k, 3.4M, 0.05."""
    size = abs(value)
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{sign}"
    if size and size < 0.001:
        return f"{value:.0e}"
    return f"{value:.0f}" if size >= 100 or math.isclose(value, round(value)) else f"{value:.2g}"


def sheet(charts: Sequence[str], *, title: str, columns: int = 2) -> str:
    """Return charts as one SVG file, each below its title, in `columns` columns."""
    gap, head = 28, 26
    heights = [float(chart.partition('viewBox="0 0 ')[2].partition('"')[0].split()[1]) for chart in charts]
    tops = [float(gap)] * columns
    parts = []
    for chart, height in zip(charts, heights, strict=True):
        column = tops.index(min(tops))
        x, y = gap + column * (WIDTH + gap), tops[column]
        name = chart.partition('aria-label="')[2].partition('"')[0]
        parts.append(f'<text x="{x}" y="{y + 14}" font-weight="600" fill="{INK}">{name}</text>')
        placed = chart.replace('width="100%"', f'width="{WIDTH}" height="{height:.0f}" x="{x}" y="{y + head}"', 1)
        parts.append(placed)
        tops[column] = y + head + height + gap
    width, height = gap + columns * (WIDTH + gap), max(tops)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{safe(title)}" width="{width}" '
        f'viewBox="0 0 {width} {height:.0f}" style="{_STYLE}"><rect width="100%" height="100%" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )
