"""Pictures and videos by path: decoding, frames and their times, stores.

Nothing here knows a data set.
"""
