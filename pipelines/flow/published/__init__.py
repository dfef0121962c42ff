"""What is known of published checkpoints: their sizes, which of them are distilled, the names that their authors give their layers.

No network with numbers, no sampling, no method; families and ledgers ask here.
"""
