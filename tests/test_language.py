"""The vocabulary of CONTRIBUTING.md: the worst wordings and British spellings are kept out of texts, strings and comments."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".svg", ".jinja", ".toml"}
AVOIDED = re.compile(
    r"\b(?:go(?:es|ing)? on\b|went on\b|lies? in\b|is no (?!longer\b)|(?:is|are) there\b|who answers\b|told\b"
    r"|houses?\b|rooms?\b"
    r"|licences?\b|licenc(?:ed|ing)\b|(?:neighbo|colo|favo|behavio|hono|labo)ur(?!g)\w*|grey\b|centres?\b|artefact\w*"
    r"|(?:normal|optim|initial|summar|serial|organ|recogn|real|special|general|minim|maxim|util|token|parallel)"
    r"is(?:e[ds]?|ing|ation\w*)\b"
    r"|analys(?:e[dr]?|ing)\b|cancell(?:ed|ing)\b|labell(?:ed|ing)\b|modell(?:ed|ing)\b|travell(?:ed|ing)\b|catalogues?\b|judgement\w*)",
    re.IGNORECASE,
)
SCANNED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    "benchmarks",
    "docs",
    "magpie_hf",
    "recipes",
    "tests",
    "tools",
)
# It holds the wordings that it looks for.
NOT_SCANNED = ("tests/test_language.py", "tests/stages/cleaning_texts.yaml")
# Texts that models are sent, trained on or tested with: file, and the words that it may hold.
ALLOWED: dict[str, set[str]] = {
    "magpie_hf/judging/rubrics/urial.yaml": {"room"},
    "magpie_hf/stages/cleaning.py": {"is there"},
    "tests/stages/test_cleaning.py": {"is there"},
    "tests/test_answers.py": {"goes on"},
    "tests/test_templates.py": {"go on"},
    "magpie_hf/templates/answer.py": {"go on"},
    "magpie_hf/templates/probe.py": {"go on"},
    "tools/demo/grammar/advice.py": {"room", "rooms"},
    "tools/demo/grammar/code.py": {"house"},
    "tools/demo/grammar/facts.py": {"room", "are there"},
    "tools/demo/grammar/judge.py": {"is there"},
    "tools/demo/grammar/math.py": {"are there"},
    "tools/demo/grammar/topics.py": {"room"},
    "tools/demo/grammar/unsafe.py": {"house"},
    "tools/demo/grammar/words.py": {"house", "houses"},
}


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line of text with its number: of Python files comments and strings only."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CONTRIBUTING.md":
        text = re.sub(r"(?ms)^## Language$.*", "", text)  # the list of words itself
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            yield from enumerate(token.string.splitlines(), token.start[0])


def findings(path: Path) -> list[str]:
    """Return the avoided wordings of a file as `file:line: wording`."""
    name = path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name
    allowed = ALLOWED.get(name, set())
    return [
        f"{name}:{number}: {match[0].strip()}"
        for number, line in texts_of(path)
        for match in AVOIDED.finditer(line)
        if match[0].strip().lower() not in allowed
    ]


def files_of(root: str) -> list[Path]:
    top = REPOSITORY / root
    files = [top] if top.is_file() else [path for path in top.rglob("*") if path.suffix in SUFFIXES]
    names = {path: path.relative_to(REPOSITORY).as_posix() for path in files}
    return sorted(path for path, name in names.items() if not name.startswith(NOT_SCANNED))


@pytest.mark.parametrize("root", SCANNED)
def test_texts_use_the_vocabulary_of_contributing(root):
    assert files_of(root)
    found = [finding for path in files_of(root) for finding in findings(path)]
    assert not found, "see the section Language in CONTRIBUTING.md:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The run goes on\n", ["goes on"]),
        ("it lies in data/\nthis is no address", ["lies in", "is no"]),
        ("rows that are there, the file is there", ["are there", "is there"]),
        ("a house with room", ["house", "room"]),
        ("Licence, neighbours and behaviour, normalised", ["Licence", "neighbours", "behaviour", "normalised"]),
        ("License, neighbors, labour-free: analysis, analyses, specialist", ["labour"]),
        ("This is no longer needed; roommate, warehouse, told_rows", []),
    ],
)
def test_the_search_finds_each_wording_and_no_others(text, found, tmp_path):
    (tmp_path / "page.md").write_text(text, "utf-8")
    assert [finding.partition(": ")[2] for finding in findings(tmp_path / "page.md")] == found


def test_of_python_files_only_strings_and_comments_are_searched(tmp_path):
    code = 'told = "told in a house"  # who answers\n\n\ndef goes_on():\n    """Lies in.\n\n    Is no x."""\n'
    (tmp_path / "code.py").write_text(code, "utf-8")
    assert findings(tmp_path / "code.py") == [
        "code.py:1: told",
        "code.py:1: house",
        "code.py:1: who answers",
        "code.py:5: Lies in",
        "code.py:7: Is no",
    ]
