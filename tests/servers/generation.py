"""Text generation for the test servers: small Llama models, fp32, and every reply a pure function of its request.

The servers of this directory promise that a reply depends on the prompt and the parameters only, never on what else is
being generated, so that a run that was killed and resumed can be compared with one that was not. Floating-point sums
change with the shape of a matrix product, so here all shapes are fixed: prompts are computed one by one, padded to a
multiple of `PROMPT_MULTIPLE`; new tokens always for `rows` rows at once (idle ones too), each row's attention over its
own length padded to a multiple of `CONTEXT_MULTIPLE`. Sampling inverts the distribution at a uniform number that is a
hash of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F


PROMPT_MULTIPLE = 32
CONTEXT_MULTIPLE = 128
PROMPTS_KEPT = 256


@dataclass(frozen=True)
class Job:
    """What to generate: `seed` None means greedy; `stop_ids` and `stop` texts end it.

    A stop text counts when the text so far ends with it, as in TGI, or anywhere in it with `stop_inside`, as in vLLM.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    stop_inside: bool = False
    banned_first_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0


@dataclass
class Output:
    """The new tokens, the stop token counted, their log probabilities, and why they ended.

    `finish`: "eos_token", "stop_sequence" or "length"; `stopped_by`: the token id or text that ended it.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"
    stopped_by: int | str | None = None


def uniform(seed: int, step: int) -> float:
    """Return the number in [0, 1) that decides token `step` of a sample with this seed."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class LlamaWeights:
    """A Llama model's matrices in fp32, and its two passes: one prompt, or one token for every row."""

    def __init__(self, model_dir: Path) -> None:
        config = json.loads((model_dir / "config.json").read_text())
        if config["model_type"] != "llama":
            raise ValueError(f"the test servers generate with Llama models only, not {config['model_type']}")
        self.num_heads: int = config["num_attention_heads"]
        self.num_kv: int = config.get("num_key_value_heads") or self.num_heads
        self.head_dim: int = config.get("head_dim") or config["hidden_size"] // self.num_heads
        self.eps: float = config["rms_norm_eps"]
        self.max_length: int = config["max_position_embeddings"]
        self.vocab_size: int = config["vocab_size"]
        tensors = {k: v.float() for f in sorted(model_dir.glob("*.safetensors")) for k, v in load_file(f).items()}
        self.embed = tensors["model.embed_tokens.weight"]
        self.head = tensors.get("lm_head.weight", self.embed)
        self.norm = tensors["model.norm.weight"]
        self.layers = [_layer(tensors, f"model.layers.{i}.") for i in range(config["num_hidden_layers"])]
        self.cos, self.sin = _rope_tables(config, self.head_dim)

    def prompt(self, ids: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Return keys and values a layer, (kv heads, len(ids), head_dim) each, and the last position's logits (vocab,)."""
        padded = -(-len(ids) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
        tokens = torch.zeros(padded, dtype=torch.long)
        tokens[: len(ids)] = torch.tensor(ids)
        x, group = self.embed[tokens], self.num_heads // self.num_kv
        cos, sin = self.cos[:padded, None], self.sin[:padded, None]
        future = torch.full((padded, padded), float("-inf")).triu(1)
        keys, values = [], []
        for layer in self.layers:
            q, k, v = self._qkv(x, layer, cos, sin)
            k, v = k.transpose(0, 1), v.transpose(0, 1)
            keys.append(k[:, : len(ids)].clone())
            values.append(v[:, : len(ids)].clone())
            scores = q.transpose(0, 1) @ k.repeat_interleave(group, 0).transpose(1, 2) * self.head_dim**-0.5
            mixed = (scores + future).softmax(-1) @ v.repeat_interleave(group, 0)
            x = self._finish_layer(x, mixed.transpose(0, 1).reshape(padded, -1), layer)
        last = _rms(x[len(ids) - 1 : len(ids)], self.norm, self.eps)
        return keys, values, F.linear(last, self.head)[0]

    def step(
        self, tokens: torch.Tensor, positions: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the logits, (rows, vocab), after one more token a row; writes its key and value at `positions`."""
        rows = len(tokens)
        every = torch.arange(rows)
        lengths = (positions // CONTEXT_MULTIPLE + 1) * CONTEXT_MULTIPLE
        masks = {n: _length_mask(positions, n, self.num_kv) for n in sorted(set(lengths.tolist()))}
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.embed[tokens]
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            q, k, v = self._qkv(x, layer, cos, sin)
            key[every, :, positions], value[every, :, positions] = k, v
            q = q.reshape(rows * self.num_kv, -1, self.head_dim)
            mixed = torch.zeros(rows, self.num_heads * self.head_dim)
            for length, mask in masks.items():
                scores = torch.bmm(q, key.flatten(0, 1)[:, :length].transpose(1, 2)) * self.head_dim**-0.5
                here = torch.bmm((scores + mask).softmax(-1), value.flatten(0, 1)[:, :length]).reshape(rows, -1)
                mixed = here if len(masks) == 1 else torch.where((lengths == length)[:, None], here, mixed)
            x = self._finish_layer(x, mixed, layer)
        return F.linear(_rms(x, self.norm, self.eps), self.head)

    def _qkv(
        self, x: torch.Tensor, layer: dict[str, torch.Tensor], cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        joined = F.linear(_rms(x, layer["norm1"], self.eps), layer["qkv"]).view(len(x), -1, self.head_dim)
        q, k, v = joined.split([self.num_heads, self.num_kv, self.num_kv], dim=1)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _finish_layer(self, x: torch.Tensor, mixed: torch.Tensor, layer: dict[str, torch.Tensor]) -> torch.Tensor:
        x = x + F.linear(mixed, layer["out"])
        gate, up = F.linear(_rms(x, layer["norm2"], self.eps), layer["gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer["down"])


def _layer(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    attention = [tensors[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    mlp = [tensors[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    return {
        "qkv": torch.cat(attention),
        "out": tensors[f"{prefix}self_attn.o_proj.weight"],
        "gate_up": torch.cat(mlp),
        "down": tensors[f"{prefix}mlp.down_proj.weight"],
        "norm1": tensors[f"{prefix}input_layernorm.weight"],
        "norm2": tensors[f"{prefix}post_attention_layernorm.weight"],
    }


def _rope_tables(config: dict, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope type {rope['rope_type']} is not known here")
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    speed = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(config["max_position_embeddings"] + PROMPT_MULTIPLE, dtype=torch.float32), speed)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _length_mask(positions: torch.Tensor, length: int, num_kv: int) -> torch.Tensor:
    beyond = torch.arange(length)[None] > positions[:, None].clamp(max=length - 1)
    return torch.zeros(beyond.shape).masked_fill_(beyond, float("-inf")).repeat_interleave(num_kv, 0)[:, None]


@dataclass
class _Slot:
    job: Job
    future: Future[Output]
    output: Output = field(default_factory=Output)
    seen: np.ndarray | None = None
    text: str = ""


class Generator:
    """Generates for many threads at once. `submit` gives a future; the work happens in one thread of its own."""

    def __init__(self, model_dir: str | Path, rows: int = 16) -> None:
        self.model_dir = Path(model_dir)
        self.weights = LlamaWeights(self.model_dir)
        self.tokenizer = Tokenizer.from_file(str(self.model_dir / "tokenizer.json"))
        self.eos_ids = _eos_ids(self.model_dir)
        self.max_length = self.weights.max_length
        self.rows = rows
        self.tokens_made = 0
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Output]] | None] = queue.SimpleQueue()
        self._prompts: OrderedDict[tuple[int, ...], tuple] = OrderedDict()
        self._slots: list[_Slot | None] = [None] * rows
        size = (rows, self.weights.num_kv, self.max_length + CONTEXT_MULTIPLE, self.weights.head_dim)
        self._keys = [torch.zeros(size) for _ in self.weights.layers]
        self._values = [torch.zeros(size) for _ in self.weights.layers]
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future[Output]:
        """Queue a job. The prompt and the new tokens must fit the model's context."""
        future: Future[Output] = Future()
        self._jobs.put((job, future))
        return future

    def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Return the text's token ids, by default with what the tokenizer puts in front (BOS)."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of these tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def close(self) -> None:
        """End the thread; what is not finished is dropped."""
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            while self._fill_slots():
                if any(self._slots):
                    self._advance()

    def _fill_slots(self) -> bool:
        """Start waiting jobs in free slots; waits for one if nothing runs. False: the generator was closed."""
        while None in self._slots:
            try:
                item = self._jobs.get(block=not any(self._slots))
            except queue.Empty:
                return True
            if item is None:
                return False
            job, future = item
            if future.set_running_or_notify_cancel():
                try:
                    self._start(self._slots.index(None), _Slot(job, future))
                except Exception as error:  # noqa: BLE001 (handed to the one who waits)
                    future.set_exception(error)
        return True

    def _start(self, index: int, slot: _Slot) -> None:
        ids = slot.job.prompt_ids
        if ids not in self._prompts:
            self._prompts[ids] = self.weights.prompt(ids)
            if len(self._prompts) > PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(ids)
        keys, values, logits = self._prompts[ids]
        for mine, new in zip(self._keys + self._values, keys + values, strict=True):
            mine[index, :, : len(ids)] = new
        if slot.job.repetition_penalty != 1.0:
            slot.seen = np.zeros(self.weights.vocab_size, dtype=bool)
            slot.seen[list(ids)] = True
        self._slots[index] = slot
        self._take(logits.numpy()[None].repeat(self.rows, 0), only=index)

    def _advance(self) -> None:
        tokens = [slot.output.token_ids[-1] if slot else 0 for slot in self._slots]
        lengths = [len(s.job.prompt_ids) + len(s.output.token_ids) - 1 if s else 0 for s in self._slots]
        logits = self.weights.step(torch.tensor(tokens), torch.tensor(lengths), self._keys, self._values)
        self._take(logits.numpy())

    def _take(self, logits: np.ndarray, only: int | None = None) -> None:
        """Choose the next token of each running row (or of one) and retire the rows that have ended."""
        active = [i for i, slot in enumerate(self._slots) if slot and only in (None, i)]
        chosen, logprobs = choose(logits, {i: self._slots[i] for i in active})  # type: ignore[misc]
        for i in active:
            slot = self._slots[i]
            assert slot is not None
            slot.output.token_ids.append(chosen[i])
            slot.output.logprobs.append(logprobs[i])
            self.tokens_made += 1
            if slot.seen is not None:
                slot.seen[chosen[i]] = True
            if self._has_ended(slot):
                self._slots[i] = None
                slot.future.set_result(slot.output)

    def _has_ended(self, slot: _Slot) -> bool:
        job, output = slot.job, slot.output
        made, last = len(output.token_ids), output.token_ids[-1]
        # The length is looked at first, as TGI does: an end-of-turn that comes as the very last token counts as "length".
        if made >= job.max_new_tokens:
            output.finish = "length"
            return True
        if last in job.stop_ids and made > job.min_new_tokens:
            output.finish, output.stopped_by = "eos_token", last
            return True
        if job.stop:
            slot.text = self.decode(output.token_ids[-100:], skip_special_tokens=False)
            for text in job.stop:
                if slot.text.endswith(text) or (job.stop_inside and text in slot.text):
                    output.finish, output.stopped_by = "stop_sequence", text
                    return True
        return False


def choose(logits: np.ndarray, slots: dict[int, _Slot]) -> tuple[dict[int, int], dict[int, float]]:
    """Return the next token and its log probability for each of these rows of `logits`, (rows, vocab) float32."""
    chosen, logprobs = {}, {}
    for i, slot in slots.items():
        job, row = slot.job, logits[i].astype(np.float64)
        if slot.seen is not None:
            row[slot.seen] = np.where(row > 0, row / job.repetition_penalty, row * job.repetition_penalty)[slot.seen]
        step = len(slot.output.token_ids)
        if step == 0 and job.banned_first_ids:
            row[list(job.banned_first_ids)] = -np.inf
        if step < job.min_new_tokens:
            row[list(job.stop_ids)] = -np.inf
        weights = np.exp((row - row.max()) / (job.temperature if job.seed is not None else 1.0))
        if job.seed is None:
            token = int(row.argmax())
        else:
            weights = _truncated(weights, job)
            total = weights.cumsum()
            token = int(np.searchsorted(total, uniform(job.seed, step) * total[-1], side="right"))
            token = min(token, int(np.flatnonzero(weights)[-1]))
        chosen[i] = token
        logprobs[i] = float(np.log(weights[token] / weights.sum()))
    return chosen, logprobs


def _truncated(weights: np.ndarray, job: Job) -> np.ndarray:
    """Return the weights with those outside of top-k and of the nucleus set to zero."""
    if not job.top_k and job.top_p >= 1.0:
        return weights
    order = np.argsort(-weights, kind="stable")
    kept = order[: job.top_k] if job.top_k else order
    if job.top_p < 1.0:
        mass = weights[kept].cumsum()
        kept = kept[: int(np.searchsorted(mass, job.top_p * mass[-1])) + 1]
    out = np.zeros_like(weights)
    out[kept] = weights[kept]
    return out


def _eos_ids(model_dir: Path) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
