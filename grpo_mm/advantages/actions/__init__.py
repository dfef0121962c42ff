"""Which action of a row earned it: gains of steps, trees, prefixes, choices, rewards to go.

Stages that give one value to a whole row live elsewhere.
"""

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"

KINDS = (
    Entry("advantage", "gains", "grpo_mm.advantages.actions.gains:Gains", "arXiv:2601.20218", _FLOW + "dense_sd35.yaml"),
    Entry("advantage", "sum_tags", "grpo_mm.advantages.actions.sum_tags:SumTags", "arXiv:2510.01982", _FLOW + "g2rpo_flux.yaml"),
    Entry("advantage", "tree_backup", "grpo_mm.advantages.actions.tree_backup:TreeBackup", "arXiv:2509.06040", _FLOW + "branch_grpo_flux.yaml"),
    Entry("advantage", "reward_to_go", "grpo_mm.advantages.actions.reward_to_go:RewardToGo", "arXiv:2510.20150"),
    Entry("advantage", "anchor_states", "grpo_mm.advantages.actions.anchor_states:AnchorStates", "arXiv:2505.10978"),
    Entry("advantage", "prefix_tree", "grpo_mm.advantages.actions.prefix_tree:PrefixTree", "arXiv:2509.18314"),
    Entry("advantage", "choice_value", "grpo_mm.advantages.actions.choices:ChoiceValue", "arXiv:2603.02701"),
)  # fmt: skip
"""What a config can name of this room."""
