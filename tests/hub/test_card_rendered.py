"""Cards as a reader sees them: rendered as Markdown with tables, hostile rows included."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from magpie_hf.hub.card import BEGIN, END, render_card
from magpie_hf.hub.facts import chart_sheet, config_facts
from magpie_hf.hub.markdown import line
from magpie_hf.storage.state import RunFacts, StageState, Totals
from tests.servers.hub_rules import card_errors


TAGS = {"h1", "h2", "h3", "p", "a", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "img", "pre", "code",
        "blockquote"}  # fmt: skip
HEADINGS = {
    "Subsets",
    "How it was made",
    "Statistics",
    "Known limits",
    "Samples",
    "Load it",
    "Cost",
    "Citation",
    "mine",
}
PARTS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "```", "````", "~~~", "\n---\nlicense: evil\n---\n", "| a | b |",
    "\n# Owned\n", "[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "<!-- ", "-->", BEGIN, END, "{{ 7*7 }}", "{% raw %}",
    "\u202e\u2066", "\x00\x07\x1b[31m", "\u200b", "&lt;b&gt;", "\\", "*", "_", "\r\n", "\u2028", "]]>", "</svg>", "<a href='x'>", "https://evil.example",
    "x" * 5000, "\n\n    indented", "\n> quote", "\n- item", "\n1. one", "<details>", "$$x$$", "@user", ":smile:",
]  # fmt: skip
hostile = st.lists(st.sampled_from(PARTS) | st.text(max_size=8), max_size=6).map("".join)


class Seen(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.headings, self.links, self._in = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in ("h1", "h2") else self._in
        self.headings += [""] if tag in ("h1", "h2") else []
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        self._in = None if tag in ("h1", "h2") else self._in

    def handle_data(self, data):
        if self._in:
            self.headings[-1] += data


def rendered(card):
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return Seen(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


def a_card(texts, plots=True):
    text = texts[0]
    rows = Dataset.from_dict(
        {
            "instruction": texts * 2,
            "response": texts[::-1] * 2,
            "language": [t[:60] for t in texts] * 2,
            "task_category": [t[-60:] for t in texts] * 2,
            "safety": [t[:20] for t in texts] * 2,
            "instruct_reward": [0.5, 1.0] * len(texts),
        }
    )
    recipe = {"name": "mine", "model": text[:80], "description": text, "system_prompt": text, "sampling": [{"temperature": 1.0, "system_prompt": text}],
              "judge": {"model": text}, "revision": text}  # fmt: skip
    stage = StageState(text, "a", rows_in=1, rows_out=1)
    run = RunFacts(recipe, Totals(tokens=3), {"a": stage})
    funnel = [{"condition": text, "rows_in": 2, "rows_out": 1, "nulls": 0}]
    facts = config_facts({"train": rows}, run=run, funnel=funnel, license="mit")
    files = {name: {"train": f"{name}/train-*"} for name in ("raw", "filtered")}
    shown = {"raw": ".magpie/plots/raw.svg"} if plots else {}
    return facts, render_card({"raw": facts, "filtered": facts}, repo_id="me/mine", data_files=files, plots=shown)


@settings(max_examples=60)
@example(["\n1. one"], False)
@given(st.lists(hostile, min_size=1, max_size=3), st.booleans())
def test_nothing_that_was_generated_is_obeyed(texts, plots):
    facts, card = a_card(texts, plots)
    seen = rendered(card)
    assert {tag for tag, _ in seen.tags} <= TAGS
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert set(seen.links) <= {"https://arxiv.org/abs/2406.08464", ".magpie/plots/raw.svg"}
    assert {heading.strip() for heading in seen.headings} <= HEADINGS
    assert card_errors({"content": card}) == {"errors": [], "warnings": []}
    assert DatasetCard(card).data.license == "mit"
    assert max(map(len, card.splitlines())) < 8000
    ET.fromstring(chart_sheet(facts["statistics"], "raw"))


@pytest.mark.parametrize("text", ["- one", "+ one", "1. one", "12) one", "= ===", "---", "1.5 times", "a - b", "-1"])
def test_a_line_is_a_paragraph_with_the_same_text(text):
    assert MarkdownIt().render(f"Before\n{line(text)}").replace("\n", " ") == f"<p>Before {text}</p> "


@settings(max_examples=30)
@given(st.lists(hostile, min_size=1, max_size=2))
def test_a_card_made_again_from_itself_is_the_same(texts):
    facts, card = a_card(texts)
    files = {name: {"train": f"{name}/train-*"} for name in ("raw", "filtered")}
    again = render_card(
        {"raw": facts, "filtered": facts},
        repo_id="me/mine",
        data_files=files,
        plots={"raw": ".magpie/plots/raw.svg"},
        existing=card,
    )
    assert again == card


def test_every_chart_of_a_kept_card_is_a_picture():
    from tests.conftest import REPOSITORY

    pictures = list((REPOSITORY / "dataset_cards").glob("*.svg"))
    assert len(pictures) > 30
    for path in pictures:
        assert ET.fromstring(path.read_text("utf-8")).tag.endswith("svg")


@pytest.mark.parametrize("name", ["quickstart", "magpie-pro-dpo-100k"])
def test_a_kept_card_has_tables_pictures_and_code(name):
    from tests.conftest import REPOSITORY

    text = (REPOSITORY / "dataset_cards" / f"{name}.md").read_text("utf-8")
    tags = [tag for tag, _ in rendered(text).tags]
    assert tags.count("table") >= 3
    assert tags.count("img") == 1
    assert tags.count("pre") >= 5
