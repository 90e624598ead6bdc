"""Tests of the export to formats of trainers."""
