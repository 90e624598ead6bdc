"""The parts of vLLM that the engine uses, without a model: requests wait, run a token a step, as many as there is width.

Like vLLM it fans a request with `n` out to `n` sequences and gives them back together, and its default width depends on
the context that the engine was made in.
"""

from __future__ import annotations

import enum
import sys
import types
from dataclasses import dataclass, field
from typing import Any


WIDTH = 64
LONG, SHORT = 400, 10


class UsageContext(enum.StrEnum):
    LLM_CLASS = "LLM_CLASS"
    ENGINE_CONTEXT = "ENGINE_CONTEXT"


class RequestOutputKind(enum.Enum):
    FINAL_ONLY = 2


@dataclass
class EngineArgs:
    model: str
    tokenizer: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    trust_remote_code: bool = False
    enable_prefix_caching: bool = False
    disable_log_stats: bool = False
    seed: int = 0
    generation_config: str = "auto"


class SamplingParams(types.SimpleNamespace):
    pass


@dataclass
class Sequence:
    name: str
    index: int
    left: int
    ids: list[int] = field(default_factory=list)


def tokens_of(seed: int) -> int:
    """The length of the sample of a seed: one in a hundred is long."""
    return LONG if seed % 100 == 50 else SHORT + seed % 7


class LLMEngine:
    def __init__(self, args: EngineArgs, usage_context: UsageContext) -> None:
        width = args.max_num_seqs or (WIDTH if usage_context is UsageContext.LLM_CLASS else WIDTH // 8)
        self.args, self.width = args, width
        self.model_config = types.SimpleNamespace(max_model_len=4096, dtype="float32")
        self.vllm_config = types.SimpleNamespace(scheduler_config=types.SimpleNamespace(max_num_seqs=width))
        self.steps = self.most_held = 0
        self._sequences: list[Sequence] = []
        self._done: dict[str, list[Sequence]] = {}
        self._n: dict[str, int] = {}

    @classmethod
    def from_engine_args(
        cls, args: EngineArgs, usage_context: UsageContext = UsageContext.ENGINE_CONTEXT
    ) -> LLMEngine:
        return cls(args, usage_context)

    def add_request(self, name: str, prompt: Any, params: SamplingParams) -> None:
        n = getattr(params, "n", 1)
        self._n[name] = n
        self._done[name] = []
        self._sequences += [Sequence(name, i, min(tokens_of(params.seed + i), params.max_tokens)) for i in range(n)]
        self.most_held = max(self.most_held, len(self._sequences))

    def has_unfinished_requests(self) -> bool:
        return bool(self._sequences)

    def step(self) -> list[Any]:
        self.steps += 1
        running = self._sequences[: self.width]
        for sequence in running:
            sequence.left -= 1
            sequence.ids.append(7)
        ended = [s for s in running if not s.left]
        self._sequences = [s for s in self._sequences if s.left]
        return [output for s in ended if (output := self._output(s)) is not None]

    def _output(self, sequence: Sequence) -> Any:
        done = self._done[sequence.name]
        done.append(sequence)
        if len(done) < self._n[sequence.name]:
            return None
        parts = [
            types.SimpleNamespace(index=s.index, token_ids=s.ids, text="x", finish_reason="length", stop_reason=None)
            for s in sorted(done, key=lambda s: s.index)
        ]
        return types.SimpleNamespace(request_id=sequence.name, finished=True, outputs=parts)

    def abort_request(self, names: list[str]) -> None:
        self._sequences = [s for s in self._sequences if s.name not in names]


def install(monkeypatch: Any) -> None:
    """Put this in vLLM's place for a test."""
    vllm = types.ModuleType("vllm")
    vllm.EngineArgs, vllm.LLMEngine, vllm.SamplingParams = EngineArgs, LLMEngine, SamplingParams  # type: ignore[attr-defined]
    vllm.TokensPrompt, vllm.__version__ = dict, "0"  # type: ignore[attr-defined]
    sampling = types.ModuleType("vllm.sampling_params")
    sampling.RequestOutputKind = RequestOutputKind  # type: ignore[attr-defined]
    usage = types.ModuleType("vllm.usage.usage_lib")
    usage.UsageContext = UsageContext  # type: ignore[attr-defined]
    parts = {"vllm": vllm, "vllm.sampling_params": sampling, "vllm.usage": types.ModuleType("vllm.usage")}
    for name, module in {**parts, "vllm.usage.usage_lib": usage}.items():
        monkeypatch.setitem(sys.modules, name, module)
