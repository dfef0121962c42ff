"""Which rows and actions are trained at all, and the control that trains on the wrong ones.

Nothing here changes what a row earned.
"""
