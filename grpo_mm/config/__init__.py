"""What a run is told: YAML to typed settings, presets of methods, contradictions found before a model is loaded.

The parts that a config names are defined elsewhere; nothing here runs them.
"""

from grpo_mm.moved import former_names

__getattr__ = former_names(__name__)
