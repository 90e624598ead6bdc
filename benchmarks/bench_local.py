"""Compare the local engine with a plain `model.generate` loop, in one process, in alternating runs.

Tasks: instructions (the pre-query prompt N times, sampled) and responses (N different prompts, greedy). The loop uses its best
batch size, decodes its texts too, and has the same weights, dtype and number of threads. Prints Markdown tables. The machine
should be idle; its load is printed with the result.

    python benchmarks/bench_local.py --model demo --threads 2 --instructions 2048 --responses 512
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from transformers.utils import logging

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.local.hf import TransformersEngine
from magpie_hf.sampling import SamplingParams


def bare_loop(engine: TransformersEngine, prompts: list[list[int]], batch: int, **generate) -> tuple[float, int]:
    """Return the seconds and the new tokens of generate() over left-padded batches of prompts sorted by length."""
    model, tokenizer = engine._model, engine._tokenizer
    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    pad = tokenizer.pad_token_id or 0
    began, tokens = time.perf_counter(), 0
    ordered = sorted(prompts, key=len, reverse=True)
    with torch.inference_mode():
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            width = len(part[0])
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in part], device=model.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=model.device)
            out = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **generate)[:, width:]
            texts = tokenizer.batch_decode(out, skip_special_tokens=False)
            assert len(texts) == len(part)
            tokens += int((out != pad).sum())
    seconds = time.perf_counter() - began
    model.set_attn_implementation(own)
    return seconds, tokens


def ours(engine: TransformersEngine, prompts: list[Prompt], params: SamplingParams) -> tuple[float, int, list]:
    """Return seconds, new tokens and generations of the engine."""
    requests = [Request(i, prompt, params.with_seed(i)) for i, prompt in enumerate(prompts)]
    began = time.perf_counter()
    generations = sorted(engine.generate(iter(requests)), key=lambda g: g.key)
    seconds = time.perf_counter() - began
    return seconds, sum(g.completion_tokens or 0 for g in generations), generations


def compare(name, engines, prompts, params, batches, repeats, **generate) -> list:
    """Print one table: every batch size of the loop, every engine; returns the generations of the first engine."""
    ids = [list(p.token_ids) for p in prompts]
    shown: dict[str, list[tuple[float, int]]] = {}
    generations: list = []
    for _ in range(repeats):
        for batch in batches:
            shown.setdefault(f"generate, batch {batch}", []).append(bare_loop(engines[0][1], ids, batch, **generate))
        for label, engine in engines:
            seconds, tokens, found = ours(engine, prompts, params)
            shown.setdefault(label, []).append((seconds, tokens))
            generations = generations or found
    rows = {label: (len(ids) / statistics.median(s for s, _ in runs), runs) for label, runs in shown.items()}
    best = max(rate for label, (rate, _) in rows.items() if label.startswith("generate"))
    print(f"\n**{name}** ({len(ids)} prompts, at most {params.max_tokens} tokens, median of {repeats})\n")
    print("| what | rows/s | tokens/s | against the best loop |\n|---|---:|---:|---:|")
    for label, (rate, runs) in rows.items():
        tokens = statistics.median(n / s for s, n in runs)
        print(f"| {label} | {rate:.1f} | {tokens:.0f} | {rate / best:.2f} |")
    return generations


def main() -> None:
    """Run both tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--instructions", type=int, default=2048)
    parser.add_argument("--responses", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256, 512, 1024, 2048])
    parser.add_argument("--engine-batches", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    engines = [("engine", TransformersEngine(args.model, device=args.device, deterministic=False))]
    engines += [
        (
            f"engine, batch {size}",
            TransformersEngine(args.model, device=args.device, deterministic=False, batch_size=size),
        )
        for size in args.engine_batches
    ]
    engines.append(("engine, deterministic", TransformersEngine(args.model, device=args.device, deterministic=True)))
    for _, engine in engines:
        engine.open()
    tokenizer = engines[0][1]._tokenizer
    ends = list(engines[0][1]._end_ids())
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
    )
    before, after = shown.split("\0")
    pre_query = Prompt(before, tokenizer.encode(before, add_special_tokens=False))
    sampled = SamplingParams(temperature=1.0, max_tokens=128)
    common = {"eos_token_id": ends}
    written = compare(
        "Instructions", engines, [pre_query] * args.instructions, sampled, args.batches, args.repeats,
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=128, **common,
    )  # fmt: skip
    texts = [g.text for g in written if g.finish_reason == "stop" and g.text.strip()][: args.responses]
    prompts = [Prompt("", tokenizer.encode(before + text + after, add_special_tokens=False)) for text in texts]
    compare(
        "Responses", engines, prompts, SamplingParams(temperature=0, max_tokens=256), args.batches, args.repeats,
        do_sample=False, max_new_tokens=256, **common,
    )  # fmt: skip
    print(f"\ntorch {torch.__version__}, {args.threads} threads, {load}, {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
