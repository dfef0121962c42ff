"""Scores of texts about clips: spans of time, highlights, tracks.

Whole benchmarks live in `benchmarks`.
"""
