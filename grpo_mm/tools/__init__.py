"""Commands beside training: bench, inference, scores of prediction files, zoo builds, the console, the page of methods.

Nothing imports from here but the command line and the package itself.
"""
