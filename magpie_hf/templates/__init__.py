"""Prompts and stop tokens, read from the tokenizer's own chat template."""
