"""What kind of outputs a reward takes and a policy makes, and how a reward of pictures is asked about clips.

No reward and no policy comes in: they say of themselves what they take and make.
"""
