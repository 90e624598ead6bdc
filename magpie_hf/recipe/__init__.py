"""Recipes: from YAML to validated settings and stages, their order and cost."""
