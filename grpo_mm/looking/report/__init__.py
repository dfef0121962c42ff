"""A run as one HTML page.

Reads the files of a run folder and nothing else.
"""

from grpo_mm.looking.report.page import Run, read_run, view, write_report

__all__ = ["Run", "read_run", "view", "write_report"]
