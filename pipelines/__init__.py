"""Pipelines turn prompts into rollouts and replay them."""
