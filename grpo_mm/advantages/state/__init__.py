"""Stages that learn beside the weights and are saved with them: value trackers, multipliers of constraints.

A stage without `state_dict` does not belong here.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("advantage", "value_tracker", "grpo_mm.advantages.state.value_tracker:ValueTracker", "arXiv:2509.13232"),
    Entry("advantage", "tracked_prior", "grpo_mm.advantages.state.value_tracker:TrackedPrior", "arXiv:2509.13232"),
    Entry("advantage", "lagrangian", "grpo_mm.advantages.state.lagrangian:Lagrangian", "arXiv:2604.08476"),
)  # fmt: skip
"""What a config can name of this room."""
