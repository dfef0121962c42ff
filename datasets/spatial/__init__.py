"""Readers of published questions and boxes on pictures.

Decoding lives in `media`.
"""
