"""Synthesize, annotate, filter and publish alignment data with the Magpie method."""

__version__ = "0.1.0"
