"""Clips for a person: files that play, frames in a row with their times, figures of movement; and the source of an edit beside them.

Nothing here knows of runs or of who scores.
"""
