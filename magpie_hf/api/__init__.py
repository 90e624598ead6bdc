"""The public functions: `synthesize`, `run`, `annotate`, `select`, `report`, `push_to_hub` and others."""
