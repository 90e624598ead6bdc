"""Reports on a dataset: statistics, one self-contained HTML page, charts for the card, agreement of two judges."""

from __future__ import annotations

from .kappa import agreement
from .page import write_report
from .statistics import dataset_statistics
from .svg import svg_charts


__all__ = ["agreement", "dataset_statistics", "svg_charts", "write_report"]
