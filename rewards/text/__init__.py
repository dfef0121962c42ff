"""Scores of texts as such: answers, tags, lengths, repetition, overlap, consistency over paraphrases; readers of spans
and tags.

Nothing here looks at boxes or media.
"""
