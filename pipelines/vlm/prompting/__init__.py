"""From a prompt with its pictures and videos to the context that a model sees, and what a rollout keeps of it.

No forward pass.
"""
