"""A run as one HTML page.

Reads the files of a run folder and nothing else.
"""
