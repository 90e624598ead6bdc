"""Reward models and sentence embeddings."""
