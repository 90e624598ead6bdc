"""Escape untrusted text for Markdown: lines, table cells, fenced blocks, bars."""

from __future__ import annotations

import html
import re

from ..reports import svg


SAMPLE_CHARACTERS = 800
BAR_CELLS = 20
_BEGINS_BLOCK = re.compile(r"\A(?:(?=[-+=])|\d{1,9}(?=[.)](?:\s|\Z)))")
"""The place for a backslash in a line that would begin a list or a rule, or make a heading of the line before."""


def line(text: object) -> str:
    """Return a text as one line of Markdown, with all Markdown and HTML syntax escaped."""
    plain = " ".join("".join(svg.visible(c) for c in str(text)).split())
    escaped = re.sub(r"([\\`*_{}\[\]#|!~])", r"\\\1", plain[:2000])
    return html.escape(_BEGINS_BLOCK.sub(r"\g<0>\\", escaped), quote=False)


def cell(text: object) -> str:
    """Return a text for a table cell: one line, escaped, cut."""
    whole = str(text)
    return line(whole if len(whole) <= 300 else whole[:300] + " …")


def column(name: object) -> str:
    """Return the name of a column for Markdown: plain identifiers unchanged, other names as in `cell`."""
    return str(name) if re.fullmatch(r"[A-Za-z]\w{0,99}", str(name), re.ASCII) else cell(name)


def fenced(text: object) -> str:
    """Return a text in a fenced block: shortened, without hidden characters, and unable to close the block."""
    whole = str(text)
    cut = "".join(svg.visible(c) for c in whole[:SAMPLE_CHARACTERS])
    cut = cut if len(whole) <= SAMPLE_CHARACTERS else f"{cut} … ({len(whole):,} characters)"
    longest = max((len(run) for run in re.findall(r"`+", cut)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{cut}\n{fence}"


def bar(share: float) -> str:
    """Return a share, from 0 to 1, as a bar of block characters."""
    filled = round(min(max(share, 0.0), 1.0) * BAR_CELLS)
    return "█" * filled + "░" * (BAR_CELLS - filled)


def spaced(page: str) -> str:
    """Return a page with one blank line around headings, tables, quotes and lists; fenced blocks are left unchanged."""
    out: list[str] = []
    fence = ""
    for text in page.splitlines():
        if fence:
            out.append(text)
            fence = "" if text.strip() == fence else fence
            continue
        opened = re.match(r"`{3,}", text)
        kind, before = _kind(text), _kind(out[-1]) if out else ""
        if out and out[-1].strip() and text.strip() and (opened or kind != before or kind == "heading"):
            out.append("")
        if text.strip() or (out and out[-1].strip()):
            out.append(text)
        fence = opened[0] if opened else ""
    return "\n".join(out).strip() + "\n"


def _kind(text: str) -> str:
    """Return the kind of block that a line of Markdown belongs to."""
    for mark, kind in (
        ("#", "heading"),
        ("|", "table"),
        (">", "quote"),
        ("- ", "list"),
        ("---", "rule"),
        ("![", "image"),
    ):
        if text.startswith(mark):
            return kind
    return "text"
