"""Prompts as data: the built-in annotations, the guard's prompt, and the in-context prompt of base models."""
