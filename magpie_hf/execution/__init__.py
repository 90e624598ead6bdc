"""Running stages: from cached rows, from the journal, or by generating what is missing."""
