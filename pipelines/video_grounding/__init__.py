"""What only clips need: frames that are noised or shuffled, difficulty, demonstrations; the published settings for
temporal grounding.

Whatever a picture needs too lives in `vlm`.
"""
