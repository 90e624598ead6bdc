"""The local engine: a model of transformers in this process, or in one process per device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, EngineError, quoted
from ...models import DEMO, ModelRef
from ..base import Capabilities, Engine, Generation, Request, Served, setting


if TYPE_CHECKING:
    from .batching import Runner
    from .schemas import Schemas

BATCH_SIZE = 512  # default maximum of rows at once; for larger models on a GPU, memory limits them earlier
# Work of one forward over prompts on a CPU, in multiply-adds: about a second on two cores, so that Ctrl-C works.
_CPU_FORWARD_WORK = 5e10
_GPU_FORWARD_TOKENS = 16384
# Share of the free memory after loading that the cache may use, and its maximum bytes on a CPU.
_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.8}
_CPU_CACHE_BYTES = 8 << 30
_QUANTIZATIONS = ("bnb-4bit", "bnb-8bit")


@dataclass(frozen=True, kw_only=True)
class TransformersSettings:
    """Settings of the engine `transformers`."""

    dtype: str | None = setting(
        None,
        '"float32", "bfloat16", "float16" or "auto" (as in the checkpoint). Default: float32 on CPU, else "auto".',
    )
    device: str | None = setting(
        None,
        '"cpu", "cuda", "cuda:1", "mps", or "auto" (split over all GPUs). Default: the first GPU, else the CPU.',
        silent=True,
    )
    devices: tuple[int | str, ...] | None = setting(
        None, 'One replica, in a process of its own, on each of these devices (0 means "cuda:0").', silent=True
    )
    quantization: str | None = setting(
        None, '"bnb-4bit" or "bnb-8bit" (requires bitsandbytes). Quantized checkpoints need no setting.'
    )
    batch_size: int | None = setting(None, "Maximum number of rows at once. Default: limited by memory.", silent=True)
    max_batch_tokens: int | None = setting(
        None,
        "Maximum number of slots of the cache (rows x longest row). Default: limited by memory. Deterministic mode uses "
        "at least 16 x the longest row.",
        silent=True,
    )
    deterministic: bool | None = setting(
        None,
        "Texts do not depend on the other rows of the batch (float32, CPU); else equal seeds give equal texts up to "
        'rounding. Default: only for the model "demo".',
        silent=True,
    )
    attn_implementation: str | None = setting(None, "As in transformers.", silent=True)
    trust_remote_code: bool = setting(False, "As in transformers.", silent=True)

    def __post_init__(self) -> None:
        if self.devices is not None:
            devices = tuple(f"cuda:{d}" if isinstance(d, int) else d for d in self.devices)
            object.__setattr__(self, "devices", devices)
        for name in ("batch_size", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} = {value} is invalid.", hint="Use 1 or more.", key=name)
        if self.quantization is not None and self.quantization not in _QUANTIZATIONS:
            raise ArgumentError(
                f"quantization = {quoted(self.quantization)} is invalid.",
                hint=f"Use {' or '.join(_QUANTIZATIONS)}. A quantized checkpoint needs no setting.",
                key="quantization",
            )


class TransformersEngine(Engine):
    """Generates with a model in this process, in large batches: rows join and leave while others run."""

    name = "transformers"
    settings_class = TransformersSettings
    settings: TransformersSettings

    def __init__(
        self, model: str, *, revision: str | None = None, ref: ModelRef | None = None, **settings: object
    ) -> None:
        """Keep the settings; see `TransformersSettings`."""
        super().__init__(model, revision=revision, ref=ref, **settings)
        asked = self.settings
        self.deterministic = model == DEMO if asked.deterministic is None else asked.deterministic
        self.window = 2 * (asked.batch_size or BATCH_SIZE)
        if self.deterministic and (asked.quantization or asked.dtype not in (None, "float32")):
            raise ArgumentError(
                "deterministic=True requires dtype float32 without quantization.",
                hint="Remove dtype and quantization, or set deterministic=False.",
                key="deterministic",
            )
        self._threads_before: int | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._runner: Runner | None = None
        self._schemas: Schemas | None = None
        self._replicas: Engine | None = None

    @property
    def served(self) -> Served | None:
        """The loaded model's dtype and transformers' version."""
        if self._replicas is not None:
            return self._replicas.served
        if self._model is None:
            return None
        import transformers

        dtype = str(self._model.dtype).removeprefix("torch.")
        return Served(self.ref.name, self.ref.revision, dtype, f"transformers {transformers.__version__}")

    def capabilities(self) -> Capabilities:
        """Return what this engine supports."""
        if self._replicas is not None:
            return self._replicas.capabilities()
        self._opened()
        from .schemas import can_hold

        return Capabilities(
            first_token_ban=True,
            first_token_scale=True,
            json_schema=can_hold(self._tokenizer),
            logprobs=True,
            max_context=self._max_context(),
        )

    def open(self) -> None:
        """Load model and tokenizer.

        Raises:
            ModelError: it is not found, cannot be loaded, or is not a text generation model.
            DependencyError: a package for the quantization is not installed.
        """
        if self._model is not None or self._replicas is not None:
            return
        devices = self.settings.devices or ()
        if len(devices) > 1:
            self._replicas = self._open_replicas()
            return
        import torch

        from .loading import load_model, make_runner, use_fit_threads

        self._model, self._tokenizer = load_model(
            self.ref,
            device=str(devices[0]) if devices else self.settings.device,
            dtype="float32" if self.deterministic else self.settings.dtype,
            quantization=self.settings.quantization,
            attn_implementation=self.settings.attn_implementation,
            trust_remote_code=self.settings.trust_remote_code,
        )
        self._threads_before = use_fit_threads(self._model)
        with torch.inference_mode():
            self._runner = make_runner(
                self._model,
                deterministic=self.deterministic,
                max_forward_tokens=self._forward_tokens(),
                max_length=self._max_context(),
            )

    def _open_replicas(self) -> Engine:
        from ..workers.child import WorkerSpec
        from ..workers.worker import ReplicatedEngine

        common = {**asdict(self.settings), "devices": None, "deterministic": self.deterministic}
        settings = common | {"model": self.model, "revision": self.revision, "ref": self.ref}
        target = "magpie_hf.engines.local.hf:TransformersEngine"
        specs = [
            WorkerSpec(target, settings | {"device": device}, label=str(device))
            for device in self.settings.devices or ()
        ]
        replicas = ReplicatedEngine(specs, model=self.model, ref=self.ref)
        replicas.stats = self.stats
        replicas.open()
        return replicas

    def close(self) -> None:
        """Free the model and its memory."""
        if self._replicas is not None:
            self._replicas.close()
            self._replicas = None
        if self._model is None:
            return
        device = self._runner.device if self._runner is not None else None
        self._model = self._tokenizer = self._runner = self._schemas = None
        import gc

        import torch

        gc.collect()
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        if device is not None and device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self) -> Runner:
        if self._runner is None:
            raise EngineError("The engine is not open.", hint="Use it as a context manager, or call open() first.")
        return self._runner

    def _max_context(self) -> int | None:
        config = self._model.config.get_text_config(decoder=True)
        found = getattr(config, "max_position_embeddings", None)
        return int(found) if found else None

    def _forward_tokens(self) -> int:
        """Return the maximum number of prompt tokens of one forward."""
        if self._model.device.type != "cpu":
            return _GPU_FORWARD_TOKENS
        weights = sum(p.numel() for p in self._model.parameters())
        return int(min(max(_CPU_FORWARD_WORK / max(weights, 1), 256), 1 << 16))

    def _end_ids(self) -> tuple[int, ...]:
        """Return the tokens that end any text: from the generation config, else from the model config."""
        for config in (getattr(self._model, "generation_config", None), self._model.config):
            found = getattr(config, "eos_token_id", None)
            if found is not None:
                return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)
        return ()

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _cache_tokens(self) -> int:
        """Return the maximum number of slots (rows x longest row) of the cache."""
        if self.settings.max_batch_tokens is not None:
            return self.settings.max_batch_tokens
        import torch

        config = self._model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_token = 2 * config.num_hidden_layers * heads * size * self._model.dtype.itemsize
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
            free = _MEMORY_SHARE["cuda"] * torch.cuda.mem_get_info(self._model.device)[0]
        else:
            free = min(_MEMORY_SHARE["cpu"] * available_memory(), _CPU_CACHE_BYTES)
        return max(1, int(free / per_token))

    # Generating

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        """Yield a generation for each request as its row finishes; new rows join while others run.

        Raises:
            ArgumentError: a request's JSON schema is invalid, or not supported.
            DependencyError: a request has a JSON schema, and llguidance is not installed.
            CapabilityError: a request has a JSON schema, and the model's tokenizer is not supported.
            EngineError: the engine is not open, or memory is not sufficient for a single row.
        """
        if self._replicas is not None:
            yield from self._replicas.generate(requests)
            return
        from .batching import RowBatch
        from .scheduling import Scheduler

        runner = self._opened()
        runner.reset(free=True)  # frees the previous stage's cache
        cache_tokens = runner.max_slots = self._cache_tokens()
        batch = RowBatch(
            runner,
            self._decode,
            end_ids=self._end_ids(),
            max_context=self._max_context(),
            schemas=self._compiled_schemas,
        )
        scheduler = Scheduler(
            batch,
            requests,
            batch_size=self.settings.batch_size or BATCH_SIZE,
            cache_tokens=cache_tokens,
            stats=self.stats,
        )
        try:
            yield from scheduler.run()
        finally:
            runner.reset(free=True)

    def _compiled_schemas(self) -> Schemas:
        if self._schemas is None:
            from .schemas import Schemas

            vocab_size = self._model.config.get_text_config(decoder=True).vocab_size
            self._schemas = Schemas(self._tokenizer, int(vocab_size), self._end_ids())
        return self._schemas

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Return the log-probability (nats) of each token of the completion after the prompt, at temperature 1."""
        return self.score_batch([(prompt_ids, completion_ids)])[0]

    def score_batch(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Return `score` of each (prompt ids, completion ids), computed together."""
        from .scoring import completion_log_probs

        self._opened()
        return completion_log_probs(self._model, pairs, max_tokens=self._forward_tokens())


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping; 4 GiB if unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 << 30
