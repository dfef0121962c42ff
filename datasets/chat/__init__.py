"""Conversations as prompts: chat messages, and the forms of LLaVA and VLM-R1.

Published benchmarks live with their modality.
"""
