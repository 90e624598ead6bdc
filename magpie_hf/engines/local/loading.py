"""Loading a model with transformers, and choosing its runner.

Imports torch and transformers: import this module inside functions only.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NamedTuple

import torch
import transformers

from ...errors import ModelError, quoted
from ...models import ModelRef
from ...templates.load import load_tokenizer
from .. import check_installed
from .attention import ATTENTION, DETERMINISTIC_ATTENTION
from .padded import PaddedRunner
from .slots import SlotRunner


ONE_THREAD_PARAMETERS = 20_000_000


logger = logging.getLogger(__name__)

# Tolerance between slots and the plain forward in the check at the start, in standard deviations of the logits. Rounding
# errors are 1e-5 in float32 and up to 5e-2 in bfloat16; a wrong position or mask gives 0.3 or more.
_TOLERANCE = 0.15


class Loaded(NamedTuple):
    """A loaded model and its tokenizer."""

    model: Any
    tokenizer: Any


def pick_device(device: str | None) -> str:
    """Return the given device, or the first GPU, or the CPU.

    Raises:
        ModelError: the device is not available.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device = {quoted(device)}: torch finds no CUDA device.", hint='Use device="cpu".')
    return device


def load_model(
    ref: ModelRef,
    *,
    device: str | None,
    dtype: str | None,
    quantization: str | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> Loaded:
    """Load model and tokenizer, in evaluation mode, on the device.

    Raises:
        ModelError: not found, broken, or not a text generation model.
        DependencyError: bitsandbytes is required and not installed.
    """
    target = pick_device(device)
    common = {"revision": ref.load_revision, "trust_remote_code": trust_remote_code}
    placed: dict[str, Any] = {"device_map": target} if target == "auto" or quantization else {}
    if quantization:
        placed["quantization_config"] = _quantization(quantization)
    if attn_implementation:
        placed["attn_implementation"] = attn_implementation
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # it would fill log files
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            ref.source, dtype=dtype or ("float32" if target == "cpu" else "auto"), **common, **placed
        )
        tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name, trust_remote_code=trust_remote_code)
        if not placed.get("device_map"):
            model = model.to(target)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _load_error(ref, error) from error
    return Loaded(model.eval().requires_grad_(False), tokenizer)


def use_fit_threads(model: Any) -> int | None:
    """Run a very small model on one thread; return the previous number of threads, or None if it was not changed.

    The demo model generated 657 instructions per second on one thread, and 59 on two threads of a machine with two
    cores, where the threads mostly wait for each other (460 without spinning). `OMP_NUM_THREADS` has priority.
    """
    small = model.device.type == "cpu" and model.num_parameters() < ONE_THREAD_PARAMETERS
    if not small or "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


def _quantization(name: str) -> Any:
    check_installed("transformers", {"quantization": name})
    bits4 = name == "bnb-4bit"
    return transformers.BitsAndBytesConfig(
        load_in_4bit=bits4, load_in_8bit=not bits4, bnb_4bit_compute_dtype=torch.bfloat16
    )


def _load_error(ref: ModelRef, error: Exception) -> ModelError:
    text = str(error)
    hint = "Check that it is a complete text generation model in a format of transformers."
    if "trust_remote_code" in text:
        hint = "It has custom code: read it, then set trust_remote_code=True."
    elif isinstance(error, ImportError):
        hint = "Install the package in the message."
    elif "out of memory" in text or "allocate memory" in text:
        hint = "Out of memory: try quantization, a smaller dtype, or device='auto' for several GPUs."
    return ModelError(
        f"The model {quoted(ref.name)} cannot be loaded: {type(error).__name__}: {quoted(text)}",
        hint=hint,
        model=ref.name,
    )


def make_runner(
    model: Any, *, deterministic: bool, max_forward_tokens: int, max_length: int | None
) -> SlotRunner | PaddedRunner:
    """Return a SlotRunner if the model gives the same logits in slots as in a plain forward, else a PaddedRunner."""
    if not _has_plain_attention(model.config.get_text_config(decoder=True), max_length):
        return PaddedRunner(model)
    _use_attention(model, DETERMINISTIC_ATTENTION if deterministic else ATTENTION)
    runner = SlotRunner(
        model, deterministic=deterministic, max_forward_tokens=max_forward_tokens, max_length=max_length
    )
    try:
        fits = agrees_with_plain_forward(runner)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        logger.info("The slot cache does not support this model: %s", error)
        fits = False
    if fits:
        return runner
    _use_attention(model, "sdpa")
    return PaddedRunner(model)


def _has_plain_attention(config: Any, max_length: int | None) -> bool:
    """Whether every layer keeps keys and values of all tokens, without sliding windows or recurrent states."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    slides = window is not None and getattr(config, "use_sliding_window", True) and "full_attention" not in kinds
    if getattr(config, "layer_types", None) is None and window is not None:
        slides = getattr(config, "use_sliding_window", True) and (max_length is None or window < max_length)
    return kinds == {"full_attention"} and not slides


def _use_attention(model: Any, name: str) -> None:
    """Switch the attention of models with sdpa; other kinds (eager with soft caps, flash) are not changed."""
    if model.config._attn_implementation in ("sdpa", ATTENTION, DETERMINISTIC_ATTENTION):
        model.set_attn_implementation(name)


def agrees_with_plain_forward(runner: SlotRunner) -> bool:
    """Whether slots give the logits of a plain forward: three prompts of two lengths, then a step of each.

    This test works for any architecture: models that compute positions from the mask, or that have recurrent states,
    fail it.
    """
    model, device = runner.model, runner.device
    vocab = int(model.get_input_embeddings().weight.shape[0])
    texts = [tuple((7 * i * i + 3 * i + k) % vocab for i in range(1, n)) for n, k in ((8, 1), (8, 2), (5, 3))]
    runner.admit([text[:-1] for text in texts])
    import numpy as np

    found = runner.step(np.array([text[-1] for text in texts], np.int64)).float()
    runner.reset()
    for row, text in enumerate(texts):
        wanted = model(input_ids=torch.tensor([text], device=device)).logits[0, -1].float()
        if not bool(((found[row] - wanted).abs().max() <= _TOLERANCE * wanted.std().clamp(min=1e-6)).item()):
            return False
    return True
