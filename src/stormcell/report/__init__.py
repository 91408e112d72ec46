"""Scores and sample frames as things people look at: pictures and films of frames, and one self-contained HTML report.

Nothing here computes a score: numbers come in as `scores`, frames as `frames`, and leave as PNG, GIF, MP4 or HTML.
"""

from .comparison import print_comparison, report_comparison
from .page import Sample, write_report
from .pictures import animate, colours, comparison, panels, save
from .table import print_scores
from .verification import report_verification

__all__ = [
    "Sample",
    "animate",
    "colours",
    "comparison",
    "panels",
    "print_comparison",
    "print_scores",
    "report_comparison",
    "report_verification",
    "save",
    "write_report",
]
