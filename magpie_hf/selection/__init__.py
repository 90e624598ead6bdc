"""Conditions on rows: the expression language, named selections, and how they are applied."""
