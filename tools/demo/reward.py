"""The demo reward model: good answers of the grammar against corrupted ones.

It starts from the chat model's first layers. Instructions whose hash falls into the held-out part are never trained
on, so accuracy on them says something.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .grammar import conversations
from .grammar.corruptions import CORRUPTIONS
from .optimizer import Optimizer, rate_at
from .tokenizer import CONTEXT, render, save_tokenizer


if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

NUM_LAYERS = 2
STEPS = 800
PAIRS_PER_STEP = 24
_HELD_OUT_OF = 20  # one instruction in twenty


class Pair(NamedTuple):
    """Two ways to end a conversation: `good` and `bad` are its messages, `corruption` names what was done."""

    corruption: str
    good: list[dict[str, str]]
    bad: list[dict[str, str]]


def is_held_out(instruction: str) -> bool:
    """Tell whether an instruction belongs to the part that is never trained on."""
    return zlib.crc32(instruction.encode()) % _HELD_OUT_OF == 0


def pairs(seed: int, *, held_out: bool) -> Iterator[Pair]:
    """Yield pairs without end, of the trained or of the held-out part."""
    rng = random.Random(seed)
    for conversation in conversations(seed, long_share=0.0):
        last = conversation.exchanges[-1]
        if is_held_out(last.instruction) != held_out:
            continue
        name = rng.choice(list(CORRUPTIONS))
        wrong = CORRUPTIONS[name](rng, last.answer, conversation)
        if not wrong.strip() or wrong.strip() == last.answer:
            continue
        messages = conversation.messages()
        yield Pair(name, messages, [*messages[:-1], {"role": "assistant", "content": wrong}])


def train_reward_model(
    chat_model: LlamaForCausalLM, tokenizer: Any, seed: int, steps: int = STEPS, *, log_every: int = 100
) -> LlamaForSequenceClassification:
    """Train on the difference of both rewards (Bradley-Terry); a small pull keeps rewards around zero."""
    import torch
    from torch.nn.functional import logsigmoid

    torch.manual_seed(seed)
    model = _from_first_layers(chat_model)
    optimizer = Optimizer(model, muon_rate=0.01, adam_rate=1e-3)
    source = pairs(seed, held_out=False)
    started, total = time.monotonic(), 0.0
    for step in range(steps):
        batch = [next(source) for _ in range(PAIRS_PER_STEP)]
        good, bad = rewards(model, tokenizer, [pair.good for pair in batch] + [pair.bad for pair in batch]).chunk(2)
        loss = -logsigmoid(good - bad).mean() + 0.005 * (good + bad).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate_at(step, steps))
        total += loss.item()
        if (step + 1) % log_every == 0:
            print(
                f"reward step {step + 1}/{steps}  loss {total / log_every:.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
            total = 0.0
    return model.eval()


def rewards(model: Any, tokenizer: Any, conversations_: list[list[dict[str, str]]]) -> torch.Tensor:
    """Return the rewards of conversations, (number,) float32."""
    import torch

    texts = [render(messages) for messages in conversations_]
    rows = [encoding.ids[-CONTEXT:] for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    pad = model.config.pad_token_id
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    # Read at the last token before the padding, as LlamaForSequenceClassification does by itself.
    values: torch.Tensor = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    return values


def accuracy(model: Any, tokenizer: Any, seed: int, count: int) -> dict[str, float]:
    """Return the share of held-out pairs whose good side wins, overall ("all") and by corruption."""
    import torch

    won: dict[str, list[bool]] = {}
    source = pairs(seed, held_out=True)
    with torch.inference_mode():
        for _ in range(max(1, count // 64)):
            batch = [next(source) for _ in range(64)]
            values = rewards(model, tokenizer, [pair.good for pair in batch] + [pair.bad for pair in batch])
            for pair, wins in zip(batch, (values[:64] > values[64:]).tolist(), strict=True):
                won.setdefault(pair.corruption, []).append(wins)
    result = {name: sum(values) / len(values) for name, values in sorted(won.items())}
    return {"all": sum(map(sum, won.values())) / sum(map(len, won.values())), **result}


def save_reward_model(model: LlamaForSequenceClassification, tokenizer: Any, directory: Path) -> None:
    """Write weights (float32), configuration and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, directory)


def _from_first_layers(chat_model: LlamaForCausalLM) -> LlamaForSequenceClassification:
    import copy

    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(chat_model.config)
    config.num_hidden_layers = NUM_LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:NUM_LAYERS]
    config.num_labels = 1
    config.architectures = ["LlamaForSequenceClassification"]
    model = LlamaForSequenceClassification(config)
    missing = model.model.load_state_dict(chat_model.model.state_dict(), strict=False).missing_keys
    if missing:
        raise RuntimeError(f"the chat model lacks {missing}")
    return model.train()
