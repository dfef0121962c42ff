"""Does the reasoning bear out the answer, and the picture the reasoning? By rules, or by a judge.

Plain right or wrong is scored in `text`.
"""
