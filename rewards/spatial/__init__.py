"""Scores of texts about places in pictures: boxes, points, maps, and how they are read and compared.

Whether a reasoning bears out its answer is scored in `faithfulness`.
"""
