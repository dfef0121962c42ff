"""How far an advantage counts: densities, ranks, weights of signs, diversity, the share of groups that teach.

What is added to a reward before it is compared lives in `bonuses`.
"""

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"

KINDS = (
    Entry("advantage", "gardo_gate", "grpo_mm.advantages.scales.gardo:GardoGate", "arXiv:2512.24138", _FLOW + "gardo_sd35.yaml"),
    Entry("advantage", "diversity_scale", "grpo_mm.advantages.scales.gardo:DiversityScale", "arXiv:2512.24138", _FLOW + "gardo_sd35.yaml"),
    Entry("advantage", "beta_norm", "grpo_mm.advantages.scales.beta_norm:BetaNorm", "arXiv:2506.02864"),
    Entry("advantage", "negative_weight", "grpo_mm.advantages.scales.negative_weight:NegativeWeight", "arXiv:2602.03452"),
    Entry("advantage", "rank_factor", "grpo_mm.advantages.scales.rank_factor:RankFactor", "arXiv:2506.02355"),
    Entry("advantage", "valid_groups", "grpo_mm.advantages.scales.valid_groups:ValidGroups", "arXiv:2504.02546"),
)  # fmt: skip
"""What a config can name of this room."""
