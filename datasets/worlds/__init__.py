"""Worlds that the package draws itself: shapes, scenes, clips, with questions whose answers are known.

No files of others.
"""
