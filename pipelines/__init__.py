"""Pipelines turn prompts into rollouts and replay them, each in a room of its own.

A pipeline is a policy, an engine and a record; no reward, no reader and no method by name comes in.
"""
