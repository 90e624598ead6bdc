"""Train the bundled demo models: `python -m tools.demo.train`.

The chat model first (tokenizer, then weights), then the reward model, which starts from the chat model's first layers.
Everything is drawn from the seed; on one machine with the same torch, the same files come out.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magpie_hf.demo.embedder import measure_statistics, write_statistics

from .grammar import conversations
from .measure import BUNDLED, measure, write_cards
from .optimizer import Optimizer, rate_at
from .packing import packed_batch, packed_loss
from .reward import STEPS as REWARD_STEPS
from .reward import save_reward_model, train_reward_model
from .tokenizer import (
    BOS,
    CONTEXT,
    END_OF_TEXT,
    END_OF_TURN,
    PAD,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    render,
    save_tokenizer,
    train_tokenizer,
    write_json,
)  # fmt: skip


if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20240608  # the day the method's paper appeared, as good as any
STEPS = 5000
POLISH_STEPS = 2500  # then, at half the rate and without drills: mostly conversations
POLISH_RATE = 0.5
POLISH_ANNOTATION_SHARE = 0.12
BATCH_TOKENS = 2048
DRILL_PART = 0.5  # of the steps, from the first on ...
DRILL_SHARE = 0.2  # ... this share of batches are copying drills, after ...
DRILL_ONLY_STEPS = 400  # ... so many steps of easy drills alone
ANNOTATION_SHARE = 0.34  # of the other batches
ANNOTATION_MIX = {"quality": 8, "difficulty": 6, "category": 6, "joined": 6, "guard": 4, "urial": 4}
POOL_BATCHES = 64  # batches cut from one pool sorted by length: little padding, still mixed


def chat_config(tokenizer: Any) -> LlamaConfig:
    """Return the chat model's shape: 1.7 million parameters, head size 32 as all servers' kernels have it."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def batches(tokenizer: Any, seed: int, steps: int, batch_tokens: int = BATCH_TOKENS) -> Iterator[torch.Tensor]:
    """Yield `steps` batches of token ids, (rows, length) int64, padded on the right, whole conversations as rows."""
    pad = tokenizer.token_to_id(PAD)
    rng = random.Random(seed)
    source = conversations(seed)
    ready: list[torch.Tensor] = []
    for _ in range(steps):
        if not ready:
            pool = []
            tokens = 0
            while tokens < POOL_BATCHES * batch_tokens:
                texts = [render(conversation.messages()) for conversation in islice(source, 512)]
                rows = [
                    encoding.ids[:CONTEXT] for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                ]
                pool += rows
                tokens += sum(map(len, rows))
            ready = [_pad(rows, pad) for rows in _cut(sorted(pool, key=len), batch_tokens)]
            rng.shuffle(ready)
        yield ready.pop()


def drills(
    tokenizer: Any, rng: random.Random, batch_tokens: int, longest: int = 40
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of random tokens said three times, (rows, length) int64, and its targets: all but the first time.

    Small models learn tables long before they learn to copy from the context; a few of these early on turn that round.
    They begin with BOS and no header, so they say nothing of what follows a header.
    """
    import torch

    length = rng.randint(min(6, longest), longest)
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    shape = (max(1, batch_tokens // (3 * length + 1)), length)
    once = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, shape, generator=generator)
    first = torch.full((len(once), 1), tokenizer.token_to_id(BOS))
    ids = torch.cat([first, once, once, once], dim=1)
    targets = ids.clone()
    targets[:, : length + 2] = tokenizer.token_to_id(PAD)
    return ids, targets


def _cut(rows: list[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    """Cut rows, sorted by length, into groups that hold about `batch_tokens` tokens with their padding."""
    group: list[list[int]] = []
    for row in rows:
        if group and len(row) * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _pad(rows: list[list[int]], pad: int) -> torch.Tensor:
    import torch

    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def train_chat_model(tokenizer: Any, steps: int, seed: int = SEED, *, log_every: int = 100) -> LlamaForCausalLM:
    """Train the chat model, on every token of conversations (it writes users' turns too) and on annotations' answers."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(chat_config(tokenizer))
    return _train(model, tokenizer, steps, seed, lambda step, rng: _kind_of(step, steps, rng), log_every=log_every)


def polish_chat_model(
    model: LlamaForCausalLM, tokenizer: Any, steps: int, seed: int = SEED, *, log_every: int = 100
) -> LlamaForCausalLM:
    """Train on, mostly on conversations: annotations are learned sooner than the grammar's many forms."""

    def kind_of(_: int, rng: random.Random) -> str:
        return _annotation(rng) if rng.random() < POLISH_ANNOTATION_SHARE else "conversations"

    return _train(model, tokenizer, steps, seed + 100, kind_of, peak=POLISH_RATE, log_every=log_every)


def _train(
    model: LlamaForCausalLM,
    tokenizer: Any,
    steps: int,
    seed: int,
    kind_of: Callable[[int, random.Random], str],
    *,
    peak: float = 1.0,
    log_every: int,
) -> LlamaForCausalLM:
    model = model.train()
    optimizer = Optimizer(model)
    started, means = time.monotonic(), dict[str, float]()
    rng = random.Random(seed)
    source = batches(tokenizer, seed + 1, steps)
    for step in range(steps):
        kind = kind_of(step, rng)
        if kind == "conversations":
            ids = next(source)
            loss = _loss(model, ids, ids)
        elif kind == "drills":
            loss = _loss(model, *drills(tokenizer, rng, BATCH_TOKENS, 12 if step < DRILL_ONLY_STEPS else 40))
        else:
            loss = packed_loss(model, packed_batch(tokenizer, rng, kind))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(peak * rate_at(step, steps))
        value = loss.item()
        means[kind] = means[kind] + 0.05 * (value - means[kind]) if kind in means else value
        if (step + 1) % log_every == 0:
            shown = "  ".join(f"{name} {mean:.3f}" for name, mean in sorted(means.items()))
            print(f"step {step + 1}/{steps}  {shown}  {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


def _kind_of(step: int, steps: int, rng: random.Random) -> str:
    """Return what a step trains on: "conversations", "drills", or an annotation task."""
    if step < min(DRILL_ONLY_STEPS, steps // 10):
        return "drills"
    if step < DRILL_PART * steps and rng.random() < DRILL_SHARE:
        return "drills"
    return _annotation(rng) if rng.random() < ANNOTATION_SHARE else "conversations"


def _annotation(rng: random.Random) -> str:
    return rng.choices(list(ANNOTATION_MIX), list(ANNOTATION_MIX.values()))[0]


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=model.config.pad_token_id)


def save_chat_model(model: LlamaForCausalLM, tokenizer: Any, directory: Path) -> None:
    """Write weights (float32), configuration, generation settings and tokenizer."""
    model.generation_config.pad_token_id = tokenizer.token_to_id(PAD)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": tokenizer.token_to_id(BOS),
            "eos_token_id": [tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(END_OF_TEXT)],
            "pad_token_id": tokenizer.token_to_id(PAD),
        },
    )
    save_tokenizer(tokenizer, directory)


def train_and_save(what: str, out: Path, steps: int, polish_steps: int, reward_steps: int) -> dict[str, float]:
    """Train what is asked for into `out`/model and `out`/reward.

    "polish" continues from the model in `out`, and "reward" from its first layers. Returns figures for the cards.
    """
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    began, figures = time.monotonic(), {}
    place = out / "model"
    if what in ("model", "all"):
        tokenizer = train_tokenizer(SEED)
        save_chat_model(train_chat_model(tokenizer, steps), tokenizer, place)
        figures["training: steps"] = float(steps)
        figures["training: minutes"] = (time.monotonic() - began) / 60
    if what in ("model", "polish", "all"):
        began = time.monotonic()
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        model = polish_chat_model(LlamaForCausalLM.from_pretrained(place), tokenizer, polish_steps)
        save_chat_model(model, tokenizer, place)
        write_embedder(place)
        figures["training, polishing: steps"] = float(polish_steps)
        figures["training, polishing: minutes"] = (time.monotonic() - began) / 60
    if what in ("reward", "all"):
        began = time.monotonic()
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        reward = train_reward_model(LlamaForCausalLM.from_pretrained(place), tokenizer, SEED + 2, reward_steps)
        save_reward_model(reward, tokenizer, out / "reward")
        figures["reward training: steps"] = float(reward_steps)
        figures["reward training: minutes"] = (time.monotonic() - began) / 60
    return figures


def write_embedder(directory: Path) -> None:
    """Write what the embedder takes out of the states, measured on instructions of the grammar."""
    from transformers import AutoModel, AutoTokenizer

    texts = [
        conversation.exchanges[0].instruction for conversation in islice(conversations(SEED + 3, long_share=0), 4000)
    ]
    model = AutoModel.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    write_statistics(measure_statistics(model, tokenizer, texts), directory)


def main(arguments: list[str] | None = None) -> None:
    """Run the training as the command line says."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m tools.demo.train", description=__doc__)
    parser.add_argument("--what", choices=["model", "polish", "reward", "all", "measure"], default="all")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="directory that gets model/ and reward/")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the chat model")
    parser.add_argument(
        "--polish-steps", type=int, default=POLISH_STEPS, help="steps after that, mostly conversations"
    )
    parser.add_argument("--reward-steps", type=int, default=REWARD_STEPS, help="steps of the reward model")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures = train_and_save(options.what, options.out, options.steps, options.polish_steps, options.reward_steps)
    figures |= measure(options.out)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    write_cards(options.out, figures)


if __name__ == "__main__":
    main()
