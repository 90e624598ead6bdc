"""Citations for a card: Magpie, and the technical reports of the models that generated the data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Citation(NamedTuple):
    """A BibTeX entry's key, title, author, year, and arXiv number or URL."""

    key: str
    title: str
    author: str
    year: int
    eprint: str = ""
    url: str = ""


MAGPIE = Citation(
    "xu2025magpie",
    "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned {LLM}s with Nothing",
    "Zhangchen Xu and Fengqing Jiang and Luyao Niu and Yuntian Deng and Radha Poovendran and Yejin Choi and "
    "Bill Yuchen Lin",
    2025,
    "2406.08464",
)
# pattern of the model id (lower case), and the report on the family; the first match counts
_REPORTS: tuple[tuple[str, Citation], ...] = (
    (r"llama-?3", Citation("grattafiori2024llama", "The {Llama} 3 Herd of Models", "{Llama Team, AI @ Meta}", 2024, "2407.21783")),
    (r"llama-?2", Citation("touvron2023llama2", "{Llama} 2: Open Foundation and Fine-Tuned Chat Models", "Hugo Touvron and others", 2023, "2307.09288")),
    (r"qwen3", Citation("yang2025qwen3", "{Qwen3} Technical Report", "{Qwen Team}", 2025, "2505.09388")),
    (r"qwen2\.5-coder", Citation("hui2024qwen25coder", "{Qwen2.5-Coder} Technical Report", "Binyuan Hui and others", 2024, "2409.12186")),
    (r"qwen2\.5-math", Citation("yang2024qwen25math", "{Qwen2.5-Math} Technical Report: Toward Mathematical Expert Model via Self-Improvement", "An Yang and others", 2024, "2409.12122")),
    (r"qwen2\.5", Citation("qwen2024qwen25", "{Qwen2.5} Technical Report", "{Qwen Team}", 2024, "2412.15115")),
    (r"qwen2", Citation("yang2024qwen2", "{Qwen2} Technical Report", "An Yang and others", 2024, "2407.10671")),
    (r"gemma-3", Citation("gemma2025gemma3", "{Gemma} 3 Technical Report", "{Gemma Team}", 2025, "2503.19786")),
    (r"gemma-2", Citation("gemma2024gemma2", "{Gemma} 2: Improving Open Language Models at a Practical Size", "{Gemma Team}", 2024, "2408.00118")),
    (r"phi-3", Citation("abdin2024phi3", "{Phi-3} Technical Report: A Highly Capable Language Model Locally on Your Phone", "Marah Abdin and others", 2024, "2404.14219")),
    (r"olmo-?2", Citation("olmo2025olmo2", "2 {OLMo} 2 Furious", "{Team OLMo}", 2025, "2501.00656")),
    (r"gpt-oss", Citation("openai2025gptoss", "gpt-oss-120b \\& gpt-oss-20b Model Card", "{OpenAI}", 2025, "2508.10925")),
    (r"smollm3", Citation("bakouch2025smollm3", "{SmolLM3}: smol, multilingual, long-context reasoner", "Elie Bakouch and others", 2025, "", "https://huggingface.co/blog/smollm3")),
)  # fmt: skip


def citations_of(models: Iterable[str], *, is_magpie: bool = True) -> list[str]:
    """Return BibTeX entries: of Magpie if its method or annotations were used, and of each known model family."""
    found = {MAGPIE.key: MAGPIE} if is_magpie else {}
    for model in models:
        for pattern, citation in _REPORTS:
            if re.search(pattern, model.lower()):
                found[citation.key] = citation
                break
    return [_bibtex(citation) for citation in found.values()]


def _bibtex(citation: Citation) -> str:
    kind = "inproceedings" if citation is MAGPIE else "misc"
    fields = {"title": citation.title, "author": citation.author, "year": str(citation.year)}
    fields |= {"booktitle": "ICLR"} if citation is MAGPIE else {}
    fields |= {"eprint": citation.eprint, "archivePrefix": "arXiv"} if citation.eprint else {}
    fields |= {"url": citation.url} if citation.url else {}
    inside = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{citation.key},\n{inside}}}"
