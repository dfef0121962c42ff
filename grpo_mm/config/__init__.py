"""What a run is told: YAML to typed settings, presets of methods, contradictions found before a model is loaded.

The parts that a config names are defined elsewhere; nothing here runs them.
"""

from grpo_mm.moved import MOVED, hand_on

hand_on(__name__, MOVED[__name__])
