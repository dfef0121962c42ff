"""The model seen as functions of contexts: features, hidden states, distributions, attention of answers to a prompt
read before.

Nothing here draws or trains.
"""
