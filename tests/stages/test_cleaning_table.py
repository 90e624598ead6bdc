"""Cleaning and rejection on 400 texts: 200 that users may write, 200 that are no instructions (cleaning_texts.yaml).

The rules were developed on every second text (the even ones, from 0), the odd ones are held out: do not read them.

python -m tests.stages.test_cleaning_table    prints precision, recall and each text that is judged wrongly
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, NamedTuple

import yaml

from magpie_hf.engines.base import Generation
from magpie_hf.stage import CODES, OK
from magpie_hf.stages.instructions import Instructions
from magpie_hf.templates.template import ChatTemplate
from tests.conftest import REPOSITORY
from tests.template_families import make_tokenizer, template
from tests.template_families.table import TOKENIZERS


TEXTS = REPOSITORY / "tests" / "stages" / "cleaning_texts.yaml"
FAMILY = "llama-3"
CUT = "cut"
MIN_PRECISION, MIN_WHOLE, MIN_RECALL, MIN_CODES = 0.97, 0.97, 0.85, 0.97
HELD_OUT_PRECISION, HELD_OUT_RECALL = 0.95, 0.70
"""Precision: of what is rejected or cut, the share that should be. Whole: of the usable texts, the share that is accepted
unchanged. Recall: of the unusable ones, the share that is rejected, or cut to the right text. Codes: of those rejected, the
share with the code expected. A lost instruction is worse than a bad one kept, as annotations find that later."""


class Judged(NamedTuple):
    """A text, what is expected of it (`code`, `becomes`), and what the stage made of it (`given`, `text`)."""

    raw: str
    trait: str
    code: str
    becomes: str | None
    given: str
    text: str

    @property
    def is_touched(self) -> bool:
        """Whether the stage rejected or cut the text."""
        return self.given != OK or self.text != self.raw.strip()

    @property
    def is_right(self) -> bool:
        """Whether the stage did what is expected, whatever code it gave."""
        if self.code in (OK, CUT):
            return self.given == OK and self.text == (self.becomes or self.raw.strip())
        return self.given != OK


class Scores(NamedTuple):
    precision: float
    recall: float
    whole: float
    codes: float
    wrong: list[Judged]


@functools.cache
def chat(family: str) -> ChatTemplate:
    tokenizer = make_tokenizer(**TOKENIZERS[family], chat_template=template(family))
    return ChatTemplate(tokenizer, name=family, template_date="2026-03-04")


def texts() -> list[tuple[str, str, dict[str, Any]]]:
    """Return (code expected, trait, entry) of each text."""
    table = yaml.safe_load(TEXTS.read_text("utf-8"))
    sides = {OK: table["usable"], **table["unusable"]}
    return [
        (code, trait, entry if isinstance(entry, dict) else {"text": entry})
        for code, traits in sides.items()
        for trait, entries in traits.items()
        for entry in entries
    ]


def judged(stage: Instructions, code: str, trait: str, entry: dict[str, Any]) -> Judged:
    raw = entry["text"]
    generation = Generation(key=0, text=raw, finish_reason="stop")
    outcome = stage.judge(generation, chat(entry.get("template", FAMILY)).find_special)
    text = str(outcome.record.get("text", raw.strip()))
    return Judged(raw, trait, code, entry.get("becomes"), outcome.code, text)


@functools.cache
def scores(*, held_out: bool = False) -> Scores:
    stage = Instructions()
    given = texts()[1::2] if held_out else texts()
    found = [judged(stage, *one) for one in given]
    unusable = [one for one in found if one.code != OK]
    usable = [one for one in found if one.code == OK]
    touched = [one for one in found if one.is_touched]
    rejected = [one for one in unusable if one.given != OK and one.code != CUT]
    return Scores(
        precision=sum(one.code != OK for one in touched) / len(touched),
        recall=sum(one.is_right for one in unusable) / len(unusable),
        whole=sum(one.is_right for one in usable) / len(usable),
        codes=sum(one.given == one.code for one in rejected) / len(rejected),
        wrong=[one for one in found if not one.is_right],
    )


def report() -> str:
    """Return the figures, and each text that is judged wrongly, by what is expected of it."""
    found = scores()
    lines = [
        f"precision {found.precision:.3f}  recall {found.recall:.3f}  whole {found.whole:.3f}  codes {found.codes:.3f}"
    ]
    for one in found.wrong:
        made = f"{one.given}: {one.text!r}" if one.given == OK else one.given
        lines.append(f"{one.code:>15} ({one.trait}) {one.raw[:90]!r} -> {made[:90]}")
    return "\n".join(lines)


def test_the_table_has_200_different_texts_a_side_and_known_codes() -> None:
    given = texts()
    counts = Counter(code == OK for code, _, _ in given)
    assert counts == {True: 200, False: 200}
    assert len({entry["text"] for _, _, entry in given}) == 400
    assert {code for code, _, _ in given} - {*CODES} <= {CUT, "repeated"}


def test_few_usable_texts_are_rejected_or_changed() -> None:
    print(report())  # noqa: T201 (read with pytest -rP)
    assert scores().precision >= MIN_PRECISION, report()
    assert scores().whole >= MIN_WHOLE, report()


def test_most_unusable_texts_are_rejected_or_cut_and_with_their_reason() -> None:
    assert scores().recall >= MIN_RECALL, report()
    assert scores().codes >= MIN_CODES, report()


def test_the_rules_also_hold_on_texts_that_they_were_not_developed_on() -> None:
    found = scores(held_out=True)
    assert found.precision >= HELD_OUT_PRECISION
    assert found.recall >= HELD_OUT_RECALL


if __name__ == "__main__":
    print(report())  # noqa: T201
