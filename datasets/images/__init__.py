"""Prompts for pictures that are to be made.

Questions about pictures live in `spatial` and `chat`.
"""
