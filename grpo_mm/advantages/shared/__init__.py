"""What several stages need: settings that are checked alike, and the columns they read.

No stage of its own; a thing with one user belongs beside that user.
"""
