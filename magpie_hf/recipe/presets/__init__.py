"""System prompts, sampling and checks for topics and languages, as data."""
