"""Drawing answers token by token: what a sampler is asked, and the reference one with continuous batching.

Faster engines come in here as files of their own, behind the same protocol.
"""
