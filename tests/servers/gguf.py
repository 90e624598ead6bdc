"""Writes a Llama model directory as a GGUF file, for llama.cpp's server: fp32, byte-level BPE, no package needed.

Checked against the file that llama.cpp's own `convert_hf_to_gguf.py` makes of the demo model: same tensors, same vocabulary.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file


ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL = 1, 3  # kinds of token
# The pre-tokenizer of the test models: single digits, contractions, letters with what precedes them.
PRE_TOKENIZER = "qwen2"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model_dir: Path, target: Path) -> Path:
    """Write the model in `model_dir` to `target` and return it."""
    config = json.loads((model_dir / "config.json").read_text("utf-8"))
    tensors = _tensors(model_dir, config)
    values = _values(model_dir, config)
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))]
    head += [_string(key) + struct.pack("<I", kind) + _value(kind, value) for key, (kind, value) in values.items()]
    offset = 0
    for name, data in tensors.items():
        shape = data.shape[::-1]
        head.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset))
        offset += _padded(data.nbytes)
    start = b"".join(head)
    with target.open("wb") as file:
        file.write(start.ljust(_padded(len(start)), b"\0"))
        for data in tensors.values():
            file.write(data.tobytes().ljust(_padded(data.nbytes), b"\0"))
    return target


def _tensors(model_dir: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    given = {
        k: v.float().numpy() for f in sorted(model_dir.glob("*.safetensors")) for k, v in load_file(str(f)).items()
    }
    out = {"token_embd.weight": given["model.embed_tokens.weight"], "output_norm.weight": given["model.norm.weight"]}
    if "lm_head.weight" in given:
        out["output.weight"] = given["lm_head.weight"]
    heads = config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            data = given[f"model.layers.{i}.{theirs}.weight"]
            if ours == "attn_q":
                data = _rotated(data, heads)
            elif ours == "attn_k":
                data = _rotated(data, config.get("num_key_value_heads") or heads)
            out[f"blk.{i}.{ours}.weight"] = data
    return {name: np.ascontiguousarray(data, dtype="<f4") for name, data in out.items()}


def _rotated(data: np.ndarray, heads: int) -> np.ndarray:
    """Return a projection in llama.cpp's order of rows, where the two numbers that RoPE rotates are neighbors."""
    return data.reshape(heads, 2, data.shape[0] // heads // 2, data.shape[1]).swapaxes(1, 2).reshape(data.shape)


def _values(model_dir: Path, config: dict[str, Any]) -> dict[str, tuple[int, Any]]:
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    control = {t["content"] for t in tokenizer["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
    return {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, model_dir.name),
        "llama.block_count": (UINT32, config["num_hidden_layers"]),
        "llama.context_length": (UINT32, config["max_position_embeddings"]),
        "llama.embedding_length": (UINT32, config["hidden_size"]),
        "llama.feed_forward_length": (UINT32, config["intermediate_size"]),
        "llama.attention.head_count": (UINT32, heads),
        "llama.attention.head_count_kv": (UINT32, config.get("num_key_value_heads") or heads),
        "llama.attention.key_length": (UINT32, head_dim),
        "llama.attention.value_length": (UINT32, head_dim),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, config["rms_norm_eps"]),
        "llama.rope.dimension_count": (UINT32, head_dim),
        "llama.rope.freq_base": (FLOAT32, theta),
        "llama.vocab_size": (UINT32, len(tokens)),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, PRE_TOKENIZER),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, [CONTROL if t in control else NORMAL for t in tokens])),
        "tokenizer.ggml.merges": (ARRAY, (STRING, merges)),
        "tokenizer.ggml.bos_token_id": (UINT32, config["bos_token_id"]),
        "tokenizer.ggml.eos_token_id": (UINT32, config["eos_token_id"]),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
        "tokenizer.chat_template": (
            STRING,
            json.loads((model_dir / "tokenizer_config.json").read_text())["chat_template"],
        ),
    }


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_value(inner, item) for item in items)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
