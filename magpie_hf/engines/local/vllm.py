"""vLLM on this machine: always in a child process, one for each device or group of devices."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ArgumentError, CapabilityError, EngineDiedError, EngineError, ModelError, quoted
from ...models import ModelRef, resolve_model
from .. import check_installed
from ..base import Capabilities, Engine, EngineStats, Failure, Generation, Request, Served
from ..groups import Pulled
from ..workers.child import WorkerSpec
from ..workers.worker import ReplicatedEngine


if TYPE_CHECKING:
    from .decoding import StopTexts

# Requests handed to vLLM, as a multiple of what it runs at once: those that wait there take a place in the very step
# in which it is free.
WIDTHS_HELD = 2


class VllmEngine(ReplicatedEngine):
    """Generates with vLLM: token-id prompts, prefix caching, tensor parallelism, vLLM's own limits and scheduling.

    - `model`, `revision`, `ref`, `dtype`, `trust_remote_code`: as for the transformers engine.
    - `quantization`: any that vLLM knows ("fp8", "awq", "gptq", …).
    - `tensor_parallel_size`: devices that share one replica.
    - `devices`: None: the first `tensor_parallel_size` ones. Else one replica for each entry: a device number, or a
      list of `tensor_parallel_size` of them; a flat list of more is cut into groups of that size.
    - `gpu_memory_utilization`, `max_model_len`: as in vLLM. `batch_size`: its `max_num_seqs`; None: vLLM's own default
      for offline inference on this device (256, or 1,024 on cards of 80 GB and more).
    - `engine_args`: more arguments of vLLM's EngineArgs.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        ref: ModelRef | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        tensor_parallel_size: int = 1,
        devices: Sequence[int | Sequence[int]] | None = None,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        batch_size: int | None = None,
        trust_remote_code: bool = False,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        self._model, self._revision, self._ref = model, revision, ref
        self._asked = {"dtype": dtype, "quantization": quantization}
        self._args: dict[str, Any] = {
            "dtype": dtype or "auto",
            "quantization": quantization,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            "trust_remote_code": trust_remote_code,
            **({"max_num_seqs": batch_size} if batch_size else {}),
            **(engine_args or {}),
        }
        self._groups = device_groups(devices, tensor_parallel_size)
        super().__init__([WorkerSpec("", {})], identity={}, name="vllm")

    @property
    def ref(self) -> ModelRef:
        """The model, found and pinned."""
        if self._ref is None:
            self._ref = resolve_model(self._model, self._revision)
        return self._ref

    def identity(self) -> dict[str, Any]:
        """Return model and revision, and dtype and quantization when set."""
        return {"model": self.ref.name, "revision": self.ref.revision} | {k: v for k, v in self._asked.items() if v}

    def open(self) -> None:
        """Start a child with vLLM for each replica and wait until the model is loaded.

        Raises:
            DependencyError: vLLM is not installed.
            ModelError: it cannot load the model.
        """
        check_installed("vllm", {})
        settings = {"ref": self.ref, "engine_args": self._args}
        self._specs = tuple(
            WorkerSpec(
                "magpie_hf.engines.local.vllm:VllmWorker",
                settings,
                label="vllm" if group is None else "vllm on " + ",".join(map(str, group)),
                environment={} if group is None else {"CUDA_VISIBLE_DEVICES": visible_devices(group)},
            )
            for group in self._groups
        )
        super().open()


def device_groups(
    devices: Sequence[int | Sequence[int]] | None, tensor_parallel_size: int
) -> list[tuple[int, ...] | None]:
    """Return the devices of each replica; one group of None where vLLM is to choose.

    >>> device_groups([0, 1, 2, 3], 2)
    [(0, 1), (2, 3)]

    Raises:
        ArgumentError: a group has not `tensor_parallel_size` devices.
    """
    if devices is None:
        return [None]
    groups: list[tuple[int, ...]] = []
    flat: list[int] = []
    for entry in devices:
        if isinstance(entry, int):
            flat.append(entry)
        else:
            groups.append(tuple(entry))
    groups += [tuple(flat[i : i + tensor_parallel_size]) for i in range(0, len(flat), tensor_parallel_size)]
    if not groups or any(len(group) != tensor_parallel_size for group in groups):
        raise ArgumentError(
            f"devices = {quoted(list(devices))} cannot be used with tensor_parallel_size = {tensor_parallel_size}.",
            hint="Every replica needs so many devices.",
            key="devices",
        )
    return list(groups)


def visible_devices(group: Sequence[int]) -> str:
    """Return CUDA_VISIBLE_DEVICES for a child: device numbers count within those that this process sees."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    try:
        return ",".join(seen[number] if seen else str(number) for number in group)
    except IndexError:
        raise ArgumentError(
            f"There is no device {max(group)}: CUDA_VISIBLE_DEVICES names {len(seen)}.", key="devices"
        ) from None


class VllmWorker(Engine):
    """vLLM in this process; runs in the child, made and driven by `VllmEngine`."""

    name = "vllm"

    def __init__(self, ref: ModelRef, engine_args: dict[str, Any]) -> None:
        self.ref = ref
        self.engine_args = engine_args
        self.stats = EngineStats()
        self.window = 0
        self._engine: Any = None
        self._max_context = 0
        self._number = 0
        self._taken_grammars: set[str | None] = {None}

    def identity(self) -> dict[str, Any]:
        """Return the model; the parent knows the rest."""
        return {"model": self.ref.name, "revision": self.ref.revision}

    def open(self) -> None:
        """Load the model into vLLM."""
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        # vLLM compares what it downloads with usage statistics switched on; runs say nothing to anyone.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CACHE_ROOT", os.path.join(tempfile.gettempdir(), f"vllm-{os.getuid()}"))
        try:
            args = EngineArgs(
                model=self.ref.source,
                tokenizer=self.ref.source,
                revision=self.ref.load_revision,
                tokenizer_revision=self.ref.load_revision,
                enable_prefix_caching=True,
                disable_log_stats=True,
                seed=0,
                # "vllm": sampling defaults of the model's generation config must not change what was asked for.
                generation_config="vllm",
                **_grammar_backend(EngineArgs, self.engine_args),
                **self.engine_args,
            )
            # The context that vLLM's LLM class gives: the default one has no limits that suit the device.
            self._engine = LLMEngine.from_engine_args(args, usage_context=UsageContext.LLM_CLASS)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"vLLM cannot load {quoted(self.ref.name)}: {type(error).__name__}: {quoted(error)}",
                hint="See its messages above. Out of memory: lower gpu_memory_utilization, max_model_len or batch_size.",
                model=self.ref.name,
            ) from error
        self._max_context = int(self._engine.model_config.max_model_len)
        self.window = WIDTHS_HELD * int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    @property
    def served(self) -> Served | None:
        """The model, its dtype and vLLM's version."""
        if self._engine is None:
            return None
        import vllm

        dtype = str(self._engine.model_config.dtype).removeprefix("torch.")
        return Served(self.ref.name, self.ref.revision, dtype, f"vllm {vllm.__version__}")

    def capabilities(self) -> Capabilities:
        """Return what vLLM can express without per-request logits processors, which its V1 engine refuses.

        `logit_bias` and `bad_words` ban a token everywhere, not only first: so no `first_token_ban`.
        """
        return Capabilities(grammar=True, max_context=self._max_context)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield generations as vLLM finishes them; requests stream in between its steps.

        Each sample is a request of its own: samples of a request with `n` come back together, the short ones with the
        longest, and the prefix cache holds their prompt in any case.
        """
        running: dict[str, _Running] = {}
        source = Pulled(iter(requests))
        try:
            while True:
                for request in source.pull(self.window - len(running)):
                    refused = self._add(request, running)
                    if refused is not None:
                        yield refused
                        source.paused = False
                if running:
                    finished = self._step(running)
                    yield from finished
                    source.paused = source.paused and not finished
                elif source.exhausted:
                    return
                elif source.paused:
                    time.sleep(0.001)
                    source.paused = False
        finally:
            if running:
                self._engine.abort_request(list(running))
                while self._engine.has_unfinished_requests():
                    self._engine.step()

    def _add(self, request: Request, running: dict[str, _Running]) -> Generation | None:
        """Give a request to vLLM; returns the failure if it refuses, raises for a new grammar."""
        from vllm import TokensPrompt

        token_ids = list(request.prompt.token_ids)
        if len(token_ids) >= self._max_context:
            message = f"the prompt has {len(token_ids)} tokens, the context {self._max_context}"
            return _refused(request, Failure("too_long", False, message))
        self._number += 1
        name = str(self._number)
        params = self._sampling_params(request)
        grammar = request.sampling.grammar
        try:
            self._engine.add_request(name, TokensPrompt(prompt_token_ids=token_ids), params)
        except ValueError as error:
            if grammar not in self._taken_grammars:
                raise ArgumentError(f"grammar: vLLM refuses it: {quoted(error)}.", key="grammar") from error
            return _refused(request, Failure("validation", False, str(error)[:200]))
        self._taken_grammars.add(grammar)
        running[name] = _Running(request, time.perf_counter())
        return None

    def _sampling_params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        given = request.sampling
        if given.banned_first_token_ids:
            raise CapabilityError(
                "vLLM cannot keep tokens from coming first (banned_first_token_ids).",
                hint="Leave it out: such texts are then rejected and sampled again.",
            )
        room = self._max_context - len(request.prompt.token_ids)
        return SamplingParams(
            temperature=given.temperature,
            top_p=given.top_p,
            top_k=given.top_k or 0,
            repetition_penalty=given.repetition_penalty,
            seed=given.seed,
            max_tokens=min(given.max_tokens, room),
            stop=list(given.stop),
            stop_token_ids=list(given.stop_token_ids),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **_structured(given.grammar),
        )

    def _step(self, running: dict[str, _Running]) -> list[Generation]:
        began = time.perf_counter()
        try:
            outputs = self._engine.step()
        except Exception as error:
            kind = EngineDiedError if type(error).__name__ == "EngineDeadError" else EngineError
            raise kind(f"vLLM failed: {type(error).__name__}: {quoted(error)}") from error
        self.stats.busy_s += time.perf_counter() - began
        finished: list[Generation] = []
        for output in outputs:
            if output.finished and output.request_id in running:
                finished.append(self._generation(running.pop(output.request_id), output.outputs[0]))
        return finished

    def _generation(self, running: _Running, part: Any) -> Generation:
        request = running.request
        ids = [int(token) for token in part.token_ids]
        reason, text, count = part.finish_reason, part.text, len(ids)
        if reason == "stop" and isinstance(part.stop_reason, str):
            reason = "stop_text"
            cut = self._stop_texts().cut(ids, request.sampling.stop)
            text, ids = cut if cut is not None else (text, ids)
        elif reason == "stop":
            ids = ids[:-1]  # the end token is the last id; vLLM leaves it out of the text
        return Generation(
            key=request.key,
            text=text,
            finish_reason=reason,
            token_ids=tuple(ids),
            prompt_tokens=len(request.prompt.token_ids),
            completion_tokens=count,
            seed=request.sampling.seed,
            seconds=time.perf_counter() - running.began,
        )

    def _stop_texts(self) -> StopTexts:
        from .decoding import StopTexts

        tokenizer = self._engine.get_tokenizer()
        return StopTexts(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)))

    def close(self) -> None:
        """Shut vLLM's core down; the process that ends next frees the rest."""
        engine, self._engine = self._engine, None
        core = getattr(engine, "engine_core", None)
        if core is not None:
            core.shutdown()


class _Running(NamedTuple):
    """A request that vLLM has, and when it began."""

    request: Request
    began: float


def _refused(request: Request, failure: Failure) -> Generation:
    return Generation(request.key, seed=request.sampling.seed, failure=failure)


def _grammar_backend(engine_args: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument of `EngineArgs` that has grammars held by llguidance, as in the local engine.

    Left to itself vLLM takes xgrammar where it can, which lets a model write white space for ever. What the caller
    says about it (`given`) stays. The argument's name changed in vLLM 0.11.
    """
    if any(name.startswith(("structured_outputs", "guided_decoding")) for name in given):
        return {}
    names = {field.name for field in dataclasses.fields(engine_args)}
    if "structured_outputs_config" in names:
        from vllm.config import StructuredOutputsConfig

        return {"structured_outputs_config": StructuredOutputsConfig(backend="guidance")}
    return {"guided_decoding_backend": "guidance"} if "guided_decoding_backend" in names else {}


def _structured(grammar: str | None) -> dict[str, Any]:
    """Return the argument that holds a text to a JSON schema; its name changed in vLLM 0.11.

    Raises ArgumentError if the text is no JSON schema.
    """
    if grammar is None:
        return {}
    from vllm import sampling_params

    from .grammar import spaced

    if hasattr(sampling_params, "StructuredOutputsParams"):
        return {"structured_outputs": sampling_params.StructuredOutputsParams(json=spaced(grammar))}
    return {"guided_decoding": sampling_params.GuidedDecodingParams(json=spaced(grammar))}
