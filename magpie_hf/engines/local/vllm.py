"""vLLM on this machine, in one child process for each device or group of devices."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ArgumentError, EngineDiedError, EngineError, ModelError, quoted
from ...models import ModelRef
from .. import check_installed
from ..base import Capabilities, Engine, Failure, Generation, Request, Served, setting
from ..first_token import TwoRequests
from ..groups import RequestSource
from ..workers.child import WorkerSpec
from ..workers.worker import ReplicatedEngine


if TYPE_CHECKING:
    from .decoding import StopTexts

# Requests sent to vLLM, as a multiple of those that it runs at once: waiting ones start in the step in which another
# one finishes.
WIDTHS_HELD = 2


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """Settings of the engine `vllm`."""

    dtype: str | None = setting(None, 'As in vLLM. Default: "auto".')
    quantization: str | None = setting(None, 'Any method of vLLM ("fp8", "awq", "gptq", …).')
    tensor_parallel_size: int = setting(1, "Number of devices that share one replica.", silent=True)
    devices: tuple[int | tuple[int, ...], ...] | None = setting(
        None,
        "One replica for each entry: a device number, or a list of `tensor_parallel_size` of them; a flat list of more "
        "is cut into groups of that size. Default: one replica on the first `tensor_parallel_size` devices.",
        silent=True,
    )
    gpu_memory_utilization: float = setting(0.9, "As in vLLM.", silent=True)
    max_model_len: int | None = setting(None, "As in vLLM.", silent=True)
    batch_size: int | None = setting(
        None,
        "vLLM's `max_num_seqs`. Default: vLLM's for offline inference on this device (256, or 1,024 on GPUs with 80 GB "
        "or more).",
        silent=True,
    )
    trust_remote_code: bool = setting(False, "As in vLLM.", silent=True)
    engine_args: dict[str, object] | None = setting(  # noqa: RUF009 (None is immutable)
        None, "More arguments of vLLM's EngineArgs.", silent=True
    )

    def to_engine_args(self) -> dict[str, Any]:
        """Return the arguments for vLLM's EngineArgs."""
        return {
            "dtype": self.dtype or "auto",
            "quantization": self.quantization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "trust_remote_code": self.trust_remote_code,
            **({"max_num_seqs": self.batch_size} if self.batch_size else {}),
            **(self.engine_args or {}),
        }


class VllmEngine(ReplicatedEngine):
    """Generates with vLLM: token-id prompts, prefix caching, tensor parallelism, vLLM's own limits and scheduling."""

    name = "vllm"
    settings_class = VllmSettings
    settings: VllmSettings

    def __init__(
        self, model: str, *, revision: str | None = None, ref: ModelRef | None = None, **settings: object
    ) -> None:
        """Keep the settings; see `VllmSettings`."""
        super().__init__([WorkerSpec("", {})], model=model, revision=revision, ref=ref, **settings)
        self._groups = device_groups(self.settings.devices, self.settings.tensor_parallel_size)

    def open(self) -> None:
        """Start a child process with vLLM for each replica and wait until the model is loaded.

        Raises:
            DependencyError: vLLM is not installed.
            ModelError: it cannot load the model.
        """
        check_installed("vllm", {})
        settings = {"model": self.model, "ref": self.ref, "engine_args": self.settings.to_engine_args()}
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
    """Return the devices of each replica; one group None if vLLM selects them.

    >>> device_groups([0, 1, 2, 3], 2)
    [(0, 1), (2, 3)]

    Raises:
        ArgumentError: a group does not have `tensor_parallel_size` devices.
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
            f"devices = {quoted(list(devices))} is invalid with tensor_parallel_size = {tensor_parallel_size}.",
            hint="Every replica requires so many devices.",
            key="devices",
        )
    return list(groups)


def visible_devices(group: Sequence[int]) -> str:
    """Return CUDA_VISIBLE_DEVICES for a child: device numbers refer to the devices visible to this process."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    try:
        return ",".join(seen[number] if seen else str(number) for number in group)
    except IndexError:
        raise ArgumentError(
            f"Device {max(group)} not found: CUDA_VISIBLE_DEVICES has {len(seen)}.", key="devices"
        ) from None


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings of `VllmWorker`."""

    engine_args: dict[str, object]


class VllmWorker(Engine):
    """vLLM in this process; runs in the child process that `VllmEngine` starts."""

    name = "vllm"
    settings_class = WorkerSettings
    settings: WorkerSettings

    def __init__(
        self, model: str, *, revision: str | None = None, ref: ModelRef | None = None, **settings: object
    ) -> None:
        """Keep the settings."""
        super().__init__(model, revision=revision, ref=ref, **settings)
        self._engine: Any = None
        self._max_context = 0
        self._number = 0
        self._accepted_schemas: set[str | None] = {None}

    def open(self) -> None:
        """Load the model into vLLM."""
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        # vLLM sends usage statistics by default; runs send nothing.
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
                # "vllm": sampling defaults of the model's generation config must not change the request.
                generation_config="vllm",
                **_schema_backend(EngineArgs, self.settings.engine_args),
                **self.settings.engine_args,
            )
            # The usage context of vLLM's LLM class sets limits for the device, the default one does not.
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
        """Return what vLLM supports; a first token with settings of its own is a request of its own."""
        return Capabilities(
            first_token_ban=True, first_token_scale=True, json_schema=True, max_context=self._max_context
        )

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield generations as vLLM finishes them; requests are added between its steps.

        vLLM's V1 engine refuses logits processors of single requests, so a sample whose first token has settings of its
        own is two requests; the prefix cache has the prompt of the second.
        """
        yield from TwoRequests("vLLM", self.capabilities(), self._decode).run(requests, self._generate)

    def _generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield the generations of requests without settings of the first token, or of a single token.

        Each sample is a separate request: samples of a request with `n` are returned together when the longest is
        finished, and the prefix cache has their prompt anyway.
        """
        running: dict[str, _Running] = {}
        source = RequestSource(iter(requests))
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
        """Add a request to vLLM; returns the failure if it is refused, raises if it is the first with its JSON schema."""
        from vllm import TokensPrompt

        token_ids = list(request.prompt.token_ids)
        if len(token_ids) >= self._max_context:
            message = f"the prompt has {len(token_ids)} tokens, the context has {self._max_context}"
            return _refused(request, Failure("too_long", False, message))
        self._number += 1
        name = str(self._number)
        params = self._sampling_params(request)
        schema = request.sampling.json_schema
        try:
            self._engine.add_request(name, TokensPrompt(prompt_token_ids=token_ids), params)
        except ValueError as error:
            if schema not in self._accepted_schemas:
                raise ArgumentError(f"json_schema: vLLM refuses it: {quoted(error)}.", key="json_schema") from error
            return _refused(request, Failure("validation", False, str(error)[:200]))
        self._accepted_schemas.add(schema)
        running[name] = _Running(request, time.perf_counter())
        return None

    def _sampling_params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        given = request.sampling
        # Of one token only: a bias applies at every position.
        bans = {"logit_bias": dict.fromkeys(given.banned_first_token_ids, -100.0)}
        free = self._max_context - len(request.prompt.token_ids)
        return SamplingParams(
            temperature=given.temperature,
            top_p=given.top_p,
            top_k=given.top_k or 0,
            repetition_penalty=given.repetition_penalty,
            seed=given.seed,
            max_tokens=min(given.max_tokens, free),
            stop=list(given.stop),
            stop_token_ids=list(given.stop_token_ids),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **(bans if given.banned_first_token_ids else {}),
            **_structured(given.json_schema),
        )

    def _step(self, running: dict[str, _Running]) -> list[Generation]:
        try:
            outputs = self._engine.step()
        except Exception as error:
            kind = EngineDiedError if type(error).__name__ == "EngineDeadError" else EngineError
            raise kind(f"vLLM failed: {type(error).__name__}: {quoted(error)}") from error
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

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._engine.get_tokenizer().decode(list(ids), skip_special_tokens=False))

    def _stop_texts(self) -> StopTexts:
        from .decoding import StopTexts

        return StopTexts(self._decode)

    def close(self) -> None:
        """Shut down vLLM's core; the end of the process frees the rest."""
        engine, self._engine = self._engine, None
        core = getattr(engine, "engine_core", None)
        if core is not None:
            core.shutdown()


class _Running(NamedTuple):
    """A request in vLLM, and its start time."""

    request: Request
    began: float


def _refused(request: Request, failure: Failure) -> Generation:
    return Generation(request.key, seed=request.sampling.seed, failure=failure)


def _schema_backend(engine_args: Any, given: Mapping[str, object]) -> dict[str, object]:
    """Return the argument of `EngineArgs` that selects llguidance for JSON schemas, as in the local engine.

    By default vLLM uses xgrammar if it can, which lets a model write white space without end. Settings of the user
    (`given`) have priority. The argument's name changed in vLLM 0.11.
    """
    if any(name.startswith(("structured_outputs", "guided_decoding")) for name in given):
        return {}
    names = {field.name for field in dataclasses.fields(engine_args)}
    if "structured_outputs_config" in names:
        from vllm.config import StructuredOutputsConfig

        return {"structured_outputs_config": StructuredOutputsConfig(backend="guidance")}
    return {"guided_decoding_backend": "guidance"} if "guided_decoding_backend" in names else {}


def _structured(schema: str | None) -> dict[str, object]:
    """Return the argument that constrains a text to a JSON schema; its name changed in vLLM 0.11.

    Raises ArgumentError if it is not a JSON schema.
    """
    if schema is None:
        return {}
    from vllm import sampling_params

    from .schemas import spaced

    if hasattr(sampling_params, "StructuredOutputsParams"):
        return {"structured_outputs": sampling_params.StructuredOutputsParams(json=spaced(schema))}
    return {"guided_decoding": sampling_params.GuidedDecodingParams(json=spaced(schema))}
