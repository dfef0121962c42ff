"""The shape of a group's rollout as a tree of latents, and how it is grown.

Which tree a method uses is one word in its config; no method by name comes in.
"""
