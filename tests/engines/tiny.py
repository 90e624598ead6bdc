"""Tiny random models for engine tests: real transformers models, made in a second, of several architectures."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers


SPECIAL = ["<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"]
END = 3
VOCAB = 320
_COMMON = {"bos_token_id": 0, "eos_token_id": END, "pad_token_id": END, "initializer_range": 0.1}
_LLAMA = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, **_COMMON}


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["the quick brown fox jumps over the lazy dog and then it writes a letter to the other animals"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def _config(kind: str) -> transformers.PretrainedConfig:
    if kind == "bloom":  # works its positions out from the mask
        return transformers.BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4, **_COMMON)
    heads = {"num_attention_heads": 4, "max_position_embeddings": 256}
    if kind == "sliding":
        return transformers.MistralConfig(**_LLAMA, **heads, num_key_value_heads=2, sliding_window=8)
    if kind == "wide":  # vLLM on CPU wants heads of 32 or more
        return transformers.LlamaConfig(**_LLAMA, **heads, num_key_value_heads=2, head_dim=32)
    return transformers.LlamaConfig(**_LLAMA, **heads, num_key_value_heads={"mha": 4, "gqa": 2}[kind])


def make_model(directory: Path, kind: str) -> str:
    """Write a model and its tokenizer; returns the directory."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(_config(kind))
    model.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return str(directory)
