"""What is on disk: journal, run directory, locks, checksums, keys, and loading rows."""
