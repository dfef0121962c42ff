"""From prompts to scored rows: which prompts a step asks, which rank samples what, how rewards are called, and the
table they give.

No estimator and no model; those read what is made here.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("reward", "function", "grpo_mm.rollout.function_reward:FunctionReward"),
)  # fmt: skip
"""What a config can name of this room."""
