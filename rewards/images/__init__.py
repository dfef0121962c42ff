"""Scores of pictures: preference and aesthetic networks, object checks, text in pictures, plain statistics.

A judge that is a language model lives in `judges`.
"""
