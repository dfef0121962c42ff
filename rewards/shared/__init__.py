"""What rewards of several modalities need: weights of reward networks, targets of prompts, named scores.

No reward of its own.
"""
