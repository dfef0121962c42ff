"""What only grounded pictures need: the sizes by which boxes are read; the published settings for spatial and grounded
reasoning.

Whatever a clip needs too lives in `vlm`.
"""
