"""What joins or reshapes a reward: prices of length, bonuses for consistency, order, novelty, ladders, demonstrations.

The comparison itself lives in `baselines`.
"""

from grpo_mm.registry import Entry

_VIDEO = "configs/video/"

KINDS = (
    Entry("advantage", "overlong_penalty", "grpo_mm.advantages.bonuses.reward_terms:OverlongPenalty", "arXiv:2503.14476"),
    Entry("advantage", "kl_in_reward", "grpo_mm.advantages.bonuses.reward_terms:KlInReward", "arXiv:2402.14740"),
    Entry("advantage", "list_shape", "grpo_mm.advantages.bonuses.list_shape:ListShape", "arXiv:2510.20150"),
    Entry("advantage", "serial_decay", "grpo_mm.advantages.bonuses.serial_decay:SerialDecay", "arXiv:2505.07686"),
    Entry("advantage", "shape_reward", "grpo_mm.advantages.bonuses.demonstrations:ShapeReward", "arXiv:2509.18056", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("advantage", "cap_demonstrations", "grpo_mm.advantages.bonuses.demonstrations:CapDemonstrations", "arXiv:2509.18056", _VIDEO + "tempsamp_downscaling_qwen25vl_7b.yaml"),
    Entry("advantage", "anchored_norm", "grpo_mm.advantages.bonuses.demonstrations:AnchoredNorm", "arXiv:2509.18056", _VIDEO + "tempsamp_anchoring_qwen25vl_7b.yaml"),
    Entry("advantage", "exempt_demonstrations", "grpo_mm.advantages.bonuses.demonstrations:ExemptDemonstrations", "arXiv:2509.18056", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("advantage", "consistency_bonus", "grpo_mm.advantages.bonuses.consistency_bonus:ConsistencyBonus", "arXiv:2506.16141", _VIDEO + "care_qwen25vl_7b.yaml"),
    Entry("advantage", "temporal_bonus", "grpo_mm.advantages.bonuses.temporal_bonus:TemporalBonus", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("advantage", "length_bonus", "grpo_mm.advantages.bonuses.temporal_bonus:LengthBonus", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("advantage", "length_switch", "grpo_mm.advantages.bonuses.length_switch:LengthSwitch", "arXiv:2505.18086"),
    Entry("advantage", "novelty", "grpo_mm.advantages.bonuses.novelty:Novelty", "arXiv:2510.06672"),
    Entry("advantage", "pass_rate_ladder", "grpo_mm.advantages.bonuses.pass_rate_ladder:PassRateLadder", "arXiv:2602.03806"),
)  # fmt: skip
"""What a config can name of this room."""
