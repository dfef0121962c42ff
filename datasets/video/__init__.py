"""Readers of published annotations of clips: temporal grounding, questions, tracking.

Decoding lives in `media`.
"""
