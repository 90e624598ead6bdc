"""Judging: rubrics as data, the prompts made from them, and how the answers of judges are parsed."""
