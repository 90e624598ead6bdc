"""What all charts are made of: the frame of a picture, its colours, its numbers, and texts that cannot break out of it.

A chart is a fluid SVG: positions across are per cent of the page's width and texts have a fixed size, so that it is
as readable on a phone as on a wide screen. Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which people with
colour-blindness tell apart; they come from CSS variables with these as fallback, so one chart fits light and dark.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from html import escape


INK, SOFT, FAINT, CARD = (
    "var(--ink, #1b1f24)", "var(--soft, #57606a)", "var(--line, #d5d9df)", "var(--card, #ffffff)",
)  # fmt: skip
BLUE, ORANGE = "var(--c1, #0072B2)", "var(--c2, #D55E00)"
PALETTE = (
    BLUE, ORANGE, "var(--c3, #009E73)", "var(--c4, #E69F00)", "var(--c5, #CC79A7)", "var(--c6, #56B4E9)", INK,
)  # fmt: skip
SCALE = (
    ("var(--s1, #d3e6f4)", "#10212e"), ("var(--s2, #9ecae8)", "#10212e"), ("var(--s3, #5aa5d6)", "#10212e"),
    ("var(--s4, #1f74ad)", "#ffffff"), ("var(--s5, #0d436c)", "#ffffff"),
)  # fmt: skip
"""Shades of an ordered scale, the lowest first, each with the colour of a text that is read on it."""
FILE_WIDTH = 560
_STYLE = "font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;display:block"
_VARIABLE = re.compile(r"var\(--\w+, (#\w+)\)")
_FRAME = re.compile(r'width="100%" height="(\d+)"')


def picture(height: float, title: str, inside: str) -> str:
    """Return a fluid SVG of the page's width and `height` pixels; `title` is what a screen reader says."""
    return (
        f'<svg role="img" aria-label="{safe(title)}" width="100%" height="{math.ceil(height)}" style="{_STYLE}">'
        f"<title>{safe(title)}</title>{inside}</svg>"
    )


def standalone(text: str, width: int = FILE_WIDTH) -> str:
    """Return a picture as a file of its own: of a fixed width, on white, its colours written out."""
    found = _FRAME.search(text)
    height = int(found[1]) if found else width
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    plain = _VARIABLE.sub(r"\1", _FRAME.sub(size, text, count=1))
    start = plain.index(">") + 1
    return f'{plain[:start]}<rect width="100%" height="100%" fill="#ffffff"/>{plain[start:]}'


def words(x: str, y: float, text: str, *, anchor: str = "start", fill: str = INK, more: str = "") -> str:
    """Return a text in a picture: `x` in per cent or pixels, `y` the baseline in pixels, `more` further attributes."""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y:g}" fill="{fill}"{place}{more}>{safe(text)}</text>'


def safe(text: object) -> str:
    """Return a text for SVG and HTML: escaped, and with nothing in it that XML refuses or that turns text around."""
    return escape("".join(visible(c) for c in str(text)))


def visible(character: str) -> str:
    """Return a character, or the replacement mark where it is hidden.

    Hidden are control characters, those that change the direction, invisible separators and the tag characters in
    which text can be smuggled. Joiners stay: Indic scripts and emoji are written with them.
    """
    code = ord(character)
    hidden = (code < 32 and character not in "\n\t") or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000
    turning = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in (0x200E, 0x200F, 0x061C, 0xFEFF)
    unseen = code in (0x200B, 0x2028, 0x2029) or 0x2060 <= code <= 0x2065 or 0xE0000 <= code < 0xE0080
    return "\N{REPLACEMENT CHARACTER}" if hidden or turning or unseen or code & 0xFFFE == 0xFFFE else character


def clipped(text: object, columns: int) -> str:
    """Return the beginning of a text in one line, `columns` latin letters wide; wide letters count twice."""
    line = " ".join(str(text)[: 4 * columns].split())
    return line if _columns(line) <= columns else _head(line, columns - 1) + "…"


def wrapped(text: object, columns: int, lines: int) -> list[str]:
    """Return a text in at most so many lines, broken at spaces where there are some."""
    rest = " ".join(str(text)[: 4 * columns * lines].split())
    out: list[str] = []
    while rest and len(out) < lines - 1 and _columns(rest) > columns:
        head = _head(rest, columns)
        cut = head.rfind(" ") if rest[len(head) : len(head) + 1] != " " else len(head)
        cut = cut if cut > columns // 3 else len(head)
        out.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return [*out, clipped(rest, columns)]


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _head(text: str, columns: int) -> str:
    width = 0
    for at, character in enumerate(text):
        width += _columns(character)
        if width > columns:
            return text[: max(1, at)]
    return text


def percent(share: float) -> str:
    """Return a share as "12 %", with a decimal where it is small or nearly all."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 10 or 99 < value < 100 else f"{value:.0f} %"


def compact(value: float) -> str:
    """Return a number as short as an axis wants it: 1.2k, 3.4M, 0.05."""
    size = abs(value)
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{sign}"
    if size and size < 0.001:
        return f"{value:.0e}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from `low` to `high`, at most `most` of them, a step of 1, 2 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / max(1, most)))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(n * step, 12) for n in range(first, last + 1)]
    return [low]


def series(values: Sequence[float]) -> list[float]:
    """Return shares of the whole, zeros where there is nothing."""
    total = sum(values)
    return [value / total if total else 0.0 for value in values]
