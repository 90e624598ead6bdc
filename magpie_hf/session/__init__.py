"""A run: its session, output, status, maintenance, and publishing."""
