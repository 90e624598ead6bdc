from __future__ import annotations

import html.parser
import os
import random
import re
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from sklearn.metrics import cohen_kappa_score

from magpie_hf.columns import SCALES
from magpie_hf.errors import ArgumentError, DatasetError
from magpie_hf.reports import agreement, dataset_statistics, svg_charts, write_report
from magpie_hf.reports.svg import points, safe
from magpie_hf.reports.verbs import root_verbs
from magpie_hf.storage.state import RunFacts, Totals
from tools.demo.grammar import conversations


def realistic(count=400, seed=1):
    """Rows as annotations write them, on the demo grammar's conversations."""
    rng = random.Random(seed)
    rows = []
    for number, conversation in enumerate(islice(conversations(5, long_share=0), count)):
        first = conversation.exchanges[0]
        rows.append(
            {
                "uuid": f"u{number}",
                "group_id": f"u{number // 3 * 3}" if number < 30 else f"u{number}",
                "instruction": first.instruction,
                "response": first.answer,
                "task_category": first.category,
                "other_task_category": ["Reasoning"] if number % 3 == 0 else [],
                "difficulty": first.difficulty,
                "input_quality": rng.choice([*SCALES["input_quality"], None]),
                "language": first.language.upper(),
                "instruct_reward": rng.gauss(-3, 4) if number % 10 else None,
                "reward_difference": rng.gauss(1, 2),
                "min_neighbor_distance": abs(rng.gauss(0.5, 0.3)),
                "instruction_tokens": len(first.instruction.split()),
                "response_tokens": len(first.answer.split()),
                "instruction_length": len(first.instruction),
                "response_length": len(first.answer),
                "safety": "unsafe" if number % 97 == 3 else "safe",
                "safety_categories": ["S2"] if number % 97 == 3 else [],
                "response_finish_reason": "stop",
                "quality_error": "unparsable" if number % 50 == 1 else None,
                "flags": {"refusal": number % 40 == 0, "unfinished": False},
            }
        )
    return Dataset.from_list(rows)


DATA = realistic()


class Page(html.parser.HTMLParser):
    """Collects what a browser would act on, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr", "use", "path", "rect", "line"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(data, tmp_path, **options):
    text = write_report(data, tmp_path / "report.html", **options).read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert not (name in ("src", "href", "xlink:href", "action") and not (value or "").startswith("#")), value
    assert not re.search(r"url\(|@import", text)
    return page, "".join(page.text)


def test_statistics_are_those_of_pandas():
    facts, frame = dataset_statistics(DATA), DATA.to_pandas()
    assert facts["rows"] == len(frame)
    for column in ("input_quality", "difficulty", "task_category", "language", "safety"):
        counts = {label: n for label, n in facts["labels"][column]["counts"].items() if n}
        assert counts == frame[column].value_counts().to_dict()
        assert facts["labels"][column]["nulls"] == frame[column].isna().sum()
    assert list(facts["labels"]["input_quality"]["counts"]) == list(SCALES["input_quality"])
    for column in ("instruct_reward", "response_tokens", "min_neighbor_distance"):
        found, values = facts["numbers"][column], frame[column].dropna()
        assert found["count"] == len(values)
        assert found["nulls"] == frame[column].isna().sum()
        assert found["mean"] == pytest.approx(values.mean())
        assert found["sd"] == pytest.approx(values.std(ddof=0))
        assert found["quantiles"]["95%"] == pytest.approx(values.quantile(0.95))
        assert sum(found["histogram"]["counts"]) == len(values)
    assert facts["flags"] == {"refusal": 10, "unfinished": 0}
    assert facts["errors"]["quality_error"] == {"unparsable": 8}
    assert facts["groups"]["groups"] == 10
    assert facts["groups"]["rows_in_groups"] == 30
    assert facts["lists"]["safety_categories"] == {"S2": frame["safety"].eq("unsafe").sum()}
    both = frame["instruction_tokens"] + frame["response_tokens"]
    assert facts["turns"]["total"] == both.sum()
    assert facts["turns"]["mean"] == pytest.approx(both.mean())
    assert facts["missing"] == {}


def test_tokens_of_a_turn_are_of_rows_that_have_both_and_spread_as_they_do():
    data = Dataset.from_dict({"instruction_tokens": [10, 20, 30, 40], "response_tokens": [30, 60, 90, None]})
    turns = dataset_statistics(data)["turns"]
    assert (turns["mean"], turns["total"], turns["rows"]) == (80.0, 240.0, 3)
    assert turns["sd"] == pytest.approx(np.std([40, 80, 120]))


def test_datasets_without_instructions_or_with_other_embeddings_have_a_report(tmp_path):
    page_of(Dataset.from_dict({"n": list(range(50))}), tmp_path)
    data = DATA.select(range(60))
    mine = data.add_column("embedding", [[float(n), 1.0] for n in range(60)])
    other = data.add_column("embedding", [[float(n), 1.0, 2.0] for n in range(60)])
    page_of(mine, tmp_path, compare={"other": other, "none": Dataset.from_dict({"n": [1]})})


def test_parts_whose_columns_are_missing_name_the_annotation(tmp_path):
    data = DATA.select_columns(["uuid", "instruction", "response"])
    assert {"quality", "difficulty", "neighbors", "reward", "flags"} <= set(dataset_statistics(data)["missing"])
    _, text = page_of(data, tmp_path)
    assert 'magpie_hf.annotate(ds, ["quality"])' in text


def test_a_report_shows_figures_charts_samples_groups_and_the_run(tmp_path):
    funnel = [{"condition": "quality >= good", "rows_in": 400, "rows_out": 150, "nulls": 3}]
    run = RunFacts({"name": "mine", "model": "demo"}, Totals(tokens=12345, engine_seconds=7200.0))
    page, text = page_of(DATA, tmp_path, run=run, funnel=funnel, compare={"other": realistic(100, 2)})
    for words in (
        "Report: mine",
        "12,345",
        "2.00",
        "Selection: 150 of 400 rows kept",
        "Task category",
        "Samples",
        "near-duplicates",
        "Map of topics",
        "other · ",
    ):
        assert words in text, words
    assert page.tags.count("svg") > 15
    assert all(dict(page.attributes).get("lang") == "en" for _ in [0])


HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></svg><img src=x onerror=alert(1)>",
    "]]> --> <!-- {{ 7*7 }} {% raw %}",
    "\u202egnp.exe \u0000\u0007 \ud800",
    "w" * 100_000,
    "`a` | b | *c* [x](javascript:alert(1))",
    "\n" * 5000,
    "&lt;b&gt; &amp;",
]


def test_hostile_rows_are_shown_and_never_obeyed(tmp_path):
    rows = [{"uuid": str(n), "instruction": text, "response": text, "task_category": text[:80], "group_id": "g", "input_quality": "good",
             "language": text[:20], "safety_categories": [text[:40]], "quality_error": text[:50]} for n, text in enumerate(HOSTILE)]  # fmt: skip
    clean = [
        {
            key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for key, value in row.items()
        }
        for row in rows
    ]
    for row in clean:
        row["safety_categories"] = [v.encode("utf-8", "replace").decode() for v in row["safety_categories"]]
    page, text = page_of(Dataset.from_list(clean), tmp_path, title="<b>title</b>")
    assert "<script>alert(1)</script>" in text  # as text
    assert "\u202e" not in text
    assert "49" not in re.findall(r"\{\{.*?\}\}", text)
    assert "img" not in page.tags
    assert (tmp_path / "report.html").stat().st_size < 300_000
    assert safe("a\u200b\u2028\u2060\u061c\U000e0041b") == "a�����b"
    assert safe("a\u202eb\x00<c>") == "a�b�&lt;c&gt;"


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_tiny_datasets_have_a_report(tmp_path, rows):
    page_of(DATA.select(range(rows)), tmp_path)
    assert dataset_statistics(DATA.select(range(rows)))["rows"] == rows


def test_rows_that_are_null_everywhere_have_a_report(tmp_path):
    nulls = Dataset.from_list([dict.fromkeys(DATA.column_names)] * 3, features=DATA.features)
    page_of(nulls, tmp_path)


def test_too_many_datasets_to_compare_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="at most 3"):
        write_report(DATA, tmp_path / "r.html", compare=dict.fromkeys("abcd", DATA))


def test_the_points_of_a_map_are_as_wide_as_high_and_where_they_belong():
    drawn = points([(0.0, 0.0), (0.5, 1.0)], size=200, radius=1.6)
    assert 'stroke-linecap="round"' in drawn
    width = float(re.search(r'stroke-width="([\d.]+)"', drawn)[1])
    dots = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", drawn)
    assert [(float(x), float(y)) for x, y, _ in dots] == [(4, 4), (100, 196)]
    assert all(float(length) + width < 1.05 * width for _, _, length in dots)


def test_charts_for_the_card_are_pictures_of_their_own():
    charts = svg_charts(DATA)
    assert {"difficulty", "task_category", "instruct_reward"} <= set(charts)
    for text in charts.values():
        assert text.startswith("<svg xmlns=")
        Page(text)


def annotated(labels, column="input_quality"):
    return Dataset.from_dict({"uuid": [str(n) for n in range(len(labels))], column: labels})


def test_agreement_and_kappas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scale = SCALES["input_quality"]
    a = [scale[n] for n in rng.integers(0, 5, 300)]
    b = [label if rng.random() < 0.6 else scale[rng.integers(0, 5)] for label in a]
    order = rng.permutation(300)
    found = agreement(annotated(a), annotated(b).select(order))["input_quality"]
    assert found["rows"] == 300
    assert found["agreement"] == pytest.approx(np.mean([x == y for x, y in zip(a, b, strict=True)]))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(a, b, labels=list(scale)))
    assert found["weighted_kappa"] == pytest.approx(cohen_kappa_score(a, b, labels=list(scale), weights="quadratic"))
    assert pd.DataFrame(found["table"]).to_numpy().sum() == 300


def test_nulls_are_counted_and_left_out_and_one_label_has_no_kappa():
    found = agreement(annotated(["good", None, "good", "poor"]), annotated(["good", "poor", None, "good"]))[
        "input_quality"
    ]
    assert (found["rows"], found["nulls_first"], found["nulls_second"], found["agreement"]) == (2, 1, 1, 0.5)
    assert agreement(annotated(["good"] * 3), annotated(["good"] * 3))["input_quality"]["kappa"] is None
    with pytest.raises(DatasetError, match="no/such"):
        agreement("./no/such", annotated(["good"]))
    with pytest.raises(DatasetError, match="share no row"):
        agreement(annotated(["good"]), annotated(["good"]).map(lambda row: {"uuid": "x"}))
    with pytest.raises(DatasetError, match="no annotation"):
        agreement(annotated(["a"], "x"), annotated(["a"], "y"))


def test_verbs_and_nouns_are_read_off_requests_and_questions():
    texts = [
        "Write a short poem about the sea.",
        "Write a poem.",
        "How do I bake bread?",
        "Please write an essay on trees.",
    ]
    verbs = {verb: (count, dict(nouns)) for verb, count, nouns in root_verbs(texts)}
    assert verbs["write"] == (3, {"poem": 2, "essay": 1})
    assert verbs["how"] == (1, {"bake": 1})
    assert root_verbs(["你好，请写一首诗。"] * 5) == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(("name", "width", "dark"), [("desktop", 1200, False), ("phone", 500, True)])
def test_a_browser_shows_the_report(tmp_path, name, width, dark):
    page = write_report(DATA, tmp_path / "report.html")
    target = Path(os.environ.get("MAGPIE_ARTIFACTS", tmp_path)) / f"report-{name}.png"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [CHROMIUM, *flags.split(), *scheme, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2200", f"--screenshot={target}", page.as_uri()],
        check=True, capture_output=True, timeout=90,
    )  # fmt: skip
    from PIL import Image

    colours = np.asarray(Image.open(target).convert("RGB")).reshape(-1, 3)
    assert (colours.mean() < 80) == dark  # the page follows the color scheme
    assert len(np.unique(colours, axis=0)) > 20
