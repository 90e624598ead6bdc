"""Files on disk: journal, run directory, locks, checksums, keys, and loading of rows."""
