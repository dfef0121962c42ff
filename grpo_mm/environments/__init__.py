"""Environments of scorers: pinned requirements files, and the virtual environments that are made of them once and kept.

Nothing here knows what runs in them; `rollout.isolated` starts processes there, `rewards.environments` is what they are told.
"""
