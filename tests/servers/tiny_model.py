"""A random, very small Llama with a chat template: a model directory for tests that need tokens but no sense.

Its texts are noise; where a test needs readable text it takes the demo model instead.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers


SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEXTS = (
    "What is the sum of seven and five? The sum of seven and five is twelve.",
    "Write a short poem about the sea and the wind that moves over it.",
    "system user assistant Explain how a list differs from a tuple in Python.",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PRE_QUERY = "<|start_header_id|>user<|end_header_id|>\n\n"


def build_tiny_model(
    directory: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, kv_heads: int = 2, context: int = 512
) -> Path:
    """Write config, tokenizer and random weights (seed 0) to `directory` and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    eos = [tokenizer.token_to_id("<|end_of_text|>"), tokenizer.token_to_id("<|eot_id|>")]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }
    _write(directory / "config.json", config)
    _write(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": eos, "pad_token_id": eos[0]})
    tokens = {"bos_token": SPECIAL_TOKENS[0], "eos_token": "<|eot_id|>", "pad_token": SPECIAL_TOKENS[1]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write(directory / "tokenizer_config.json", {**settings, **tokens, "chat_template": CHAT_TEMPLATE})
    save_file(_weights(config), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 0)])
    return tokenizer


def _weights(config: dict) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv = head_dim * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    out = {}
    for name in ("model.embed_tokens", "lm_head"):
        # Logits with a spread of about 2, so that sampling has likely and unlikely tokens to choose from.
        scale = 1.0 if name == "model.embed_tokens" else 2 * hidden**-0.5
        out[f"{name}.weight"] = torch.randn(config["vocab_size"], hidden, generator=random) * scale
    for i in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            out[f"model.layers.{i}.{name}.weight"] = torch.randn(shape, generator=random) * shape[1] ** -0.5
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"model.layers.{i}.{name}.weight"] = torch.ones(hidden)
    out["model.norm.weight"] = torch.ones(hidden)
    return out
