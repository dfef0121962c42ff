"""Rewards of a config served over HTTP to other processes and machines, and the reward that asks such a server.

What is scored stays where it is; nothing but JSON and PNG crosses, and no pickle comes in.
"""

from grpo_mm.registry import Entry

KINDS = (Entry("reward", "remote", "grpo_mm.rewards.service.remote:Remote"),)
"""What a config can name of this room."""
