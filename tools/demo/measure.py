"""What the demo models can do, measured: the figures of their cards."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import magpie_hf.demo

from .generate import generate
from .grammar import FORMS, conversations
from .judge import measure_judge
from .reward import accuracy
from .tokenizer import BOS, HEADER_END, HEADER_START, render


BUNDLED = Path(magpie_hf.demo.__file__).parent
PRE_QUERY = f"{BOS}{HEADER_START}user{HEADER_END}\n\n"
_BEGIN, _END = "<!-- figures -->", "<!-- /figures -->"
_ROW = re.compile(r"^\| (\S.*?) \| (\S.*?) \|$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]+")


def response_prompt(instruction: str, system: str | None = None) -> str:
    """Return the prompt for the answer to an instruction."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": instruction})
    return render(messages) + f"{HEADER_START}assistant{HEADER_END}\n\n"


def known_words(seed: int = 1, count: int = 30_000) -> set[str]:
    """Return the words that the grammar uses."""
    words: set[str] = set()
    for conversation in islice(conversations(seed, long_share=0.0), count):
        for message in conversation.messages():
            words.update(_WORD.findall(message["content"]))
    return words


def is_well_formed(text: str, ended: bool, words: set[str]) -> bool:
    """Tell whether an instruction ended by itself, is not empty, and has no word that the grammar does not know."""
    return ended and bool(text.strip()) and "<|" not in text and all(word in words for word in _WORD.findall(text))


def measure_chat_model(model: Any, tokenizer: Any, count: int = 1000) -> dict[str, float]:
    """Return shares: of instructions at three temperatures, and of greedy answers."""
    words = known_words()
    figures: dict[str, float] = {}
    for temperature in (0.8, 1.0, 1.2):
        made = generate(model, tokenizer, [PRE_QUERY] * count, temperature=temperature, seed=7)
        figures[f"ended at {temperature}"] = sum(ended for _, ended in made) / count
        figures[f"well-formed at {temperature}"] = sum(is_well_formed(*pair, words) for pair in made) / count
        figures[f"distinct at {temperature}"] = len({text for text, _ in made}) / count
    exchanges = [conversation.exchanges[0] for conversation in islice(conversations(99, long_share=0.0), count)]
    answers = generate(model, tokenizer, [response_prompt(exchange.instruction) for exchange in exchanges])
    figures["answers ended"] = sum(ended for _, ended in answers) / count
    pairs = list(zip(exchanges, answers, strict=True))
    figures["answers as the grammar's"] = sum(answer == exchange.answer for exchange, (answer, _) in pairs) / count
    rng = random.Random(5)
    sums = [entry.write(rng) for entry in FORMS.values() if entry.domain == "math" for _ in range(20)]
    solved = generate(model, tokenizer, [response_prompt(exchange.instruction) for exchange in sums])
    figures["math answers correct"] = sum(
        _last_number(answer) == _last_number(exchange.answer)
        for exchange, (answer, _) in zip(sums, solved, strict=True)
    ) / len(sums)
    return figures


def measure(directory: Path) -> dict[str, float]:
    """Measure the models in `directory`/model and `directory`/reward, as far as they exist."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory / "model").eval()
    tokenizer_ = AutoTokenizer.from_pretrained(directory / "model")
    figures = measure_chat_model(model, tokenizer_) | measure_judge(model, tokenizer_)
    if (directory / "reward" / "config.json").is_file():
        reward = AutoModelForSequenceClassification.from_pretrained(directory / "reward").eval()
        tokenizer = Tokenizer.from_file(str(directory / "reward" / "tokenizer.json"))
        for name, share in accuracy(reward, tokenizer, seed=3, count=2000).items():
            figures[f"reward accuracy, {name}"] = share
    return figures


def write_cards(directory: Path, figures: dict[str, float]) -> None:
    """Put figures into the tables of both models' cards; figures that were not measured now stay as they are.

    A model that is trained elsewhere gets the bundled models' cards first.
    """
    for kind in ("model", "reward"):
        if not (directory / kind).is_dir():
            continue
        source = directory / kind / "README.md"
        card = (source if source.is_file() else BUNDLED / kind / "README.md").read_text(encoding="utf-8")
        head, rest = card.split(_BEGIN)
        old, tail = rest.split(_END)
        rows = dict(_ROW.findall(old)) if source.is_file() else {}
        size = sum(file.stat().st_size for file in (directory / kind).iterdir() if file.name != "README.md")
        rows["size in MB"] = f"{size / 1e6:.2f}"
        rows |= {
            name: _shown(name, value) for name, value in figures.items() if ("reward" in name) == (kind == "reward")
        }
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        table = "\n".join(["| | |", "|---|---|", *lines])
        source.write_text(f"{head}{_BEGIN}\n{table}\n{_END}{tail}", encoding="utf-8")


def _shown(name: str, value: float) -> str:
    if name.endswith("steps"):
        return f"{value:.0f}"
    return f"{value:.1f}" if name.endswith("minutes") else f"{value:.1%}"


def _last_number(text: str) -> str | None:
    numbers = re.findall(r"\d+", text)
    return numbers[-1] if numbers else None
