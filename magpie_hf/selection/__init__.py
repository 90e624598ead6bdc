"""The expression language, named selections, and how they are applied."""
