"""Engines that run the model on this machine: transformers and vLLM."""
