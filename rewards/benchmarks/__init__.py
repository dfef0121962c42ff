"""Benchmarks: figures of a whole data set as the official scorers compute them, of videos in time and of pictures in space.

`window_metrics` and `qvhighlights_metrics` hold the pure scorers, in per cent; the other files read texts or published
prediction files and ask them.
"""
