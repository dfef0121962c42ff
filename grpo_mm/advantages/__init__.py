"""Group-relative advantages: pure functions of tensors, and the stages that apply them to the table, in rooms by idea.

Here is only what carries the table back to rows and actions (`credit`), and the names of all rooms; a stage goes into its room.
"""

from grpo_mm.advantages.actions.anchor_states import AnchorStates, anchor_advantage, episode_advantage
from grpo_mm.advantages.actions.choices import ChoiceValue, choice_advantage, choice_value
from grpo_mm.advantages.actions.gains import Gains, gains
from grpo_mm.advantages.actions.prefix_tree import PrefixTree, prefix_tree_td
from grpo_mm.advantages.actions.reward_to_go import RewardToGo, dcg_discount, reward_to_go
from grpo_mm.advantages.actions.sum_tags import SumTags, sum_within
from grpo_mm.advantages.actions.tree_backup import TreeBackup, tree_backup
from grpo_mm.advantages.baselines.agents import AgentNorm, SubAgentReward, copies_norm, sub_agent_reward
from grpo_mm.advantages.baselines.fleet_norm import FleetNorm, fairness
from grpo_mm.advantages.baselines.group_norm import GroupNorm, group_norm
from grpo_mm.advantages.baselines.median_norm import MedianNorm, median_norm, pivots
from grpo_mm.advantages.baselines.pass_at_k import PassAtK, pass_at_k
from grpo_mm.advantages.baselines.quantile_norm import QuantileNorm, group_quantile, quantile_norm
from grpo_mm.advantages.baselines.shrinkage import Shrinkage, data_weight, draw_another, shrunk_baseline
from grpo_mm.advantages.baselines.stratified import StratifiedNorm, stratified_norm
from grpo_mm.advantages.baselines.virtual_norm import VirtualNorm, virtual_norm
from grpo_mm.advantages.bonuses.consistency_bonus import ConsistencyBonus, consistent
from grpo_mm.advantages.bonuses.demonstrations import (
    AnchoredNorm,
    CapDemonstrations,
    ExemptDemonstrations,
    ShapeReward,
    anchored_norm,
    shaped,
)
from grpo_mm.advantages.bonuses.length_switch import LengthSwitch, length_switch
from grpo_mm.advantages.bonuses.list_shape import ListShape, list_bonus
from grpo_mm.advantages.bonuses.novelty import Novelty, novelty_bonus
from grpo_mm.advantages.bonuses.pass_rate_ladder import PassRateLadder, pass_rate_ladder
from grpo_mm.advantages.bonuses.reward_terms import KlInReward, OverlongPenalty, overlong_penalty
from grpo_mm.advantages.bonuses.serial_decay import SerialDecay, serial_decay
from grpo_mm.advantages.bonuses.temporal_bonus import LengthBonus, TemporalBonus, order_matters
from grpo_mm.advantages.combination.average import Average
from grpo_mm.advantages.combination.combine import Clamp, WeightedSum, weighted_sum
from grpo_mm.advantages.combination.gate import Gate, gate
from grpo_mm.advantages.combination.outcome import MarkPositive, Shortness, shortness
from grpo_mm.advantages.credit import credit
from grpo_mm.advantages.masks.drop_degenerate import DropDegenerate, first_useful, useful_groups
from grpo_mm.advantages.masks.leave_out import LeaveOut
from grpo_mm.advantages.masks.select import KeepExtremes, keep_extremes
from grpo_mm.advantages.masks.shuffle import Shuffle
from grpo_mm.advantages.masks.truncation import ConditionalTruncationMask, OverlongMask, repeats, silenced
from grpo_mm.advantages.scales.beta_norm import BetaNorm, beta_norm, beta_parameters, beta_weight
from grpo_mm.advantages.scales.gardo import DiversityScale, GardoGate, batch_win_rate, diversity_scaled, uncertainty
from grpo_mm.advantages.scales.negative_weight import NegativeWeight, negative_weighted, paired_prompts, signed_outcome
from grpo_mm.advantages.scales.rank_factor import RankFactor, group_ranks, rank_factor
from grpo_mm.advantages.scales.valid_groups import ValidGroups, valid_groups_factor
from grpo_mm.advantages.state.lagrangian import Constraint, Lagrangian, dual_step
from grpo_mm.advantages.state.value_tracker import TrackedPrior, ValueTracker, initial_counts, tracked, tracker_memory

__all__ = [
    "AgentNorm", "AnchorStates", "AnchoredNorm", "Average", "BetaNorm", "CapDemonstrations", "ChoiceValue", "Clamp",
    "ConditionalTruncationMask", "ConsistencyBonus", "Constraint", "DiversityScale", "DropDegenerate",
    "ExemptDemonstrations", "FleetNorm", "Gains", "GardoGate", "Gate", "GroupNorm", "KeepExtremes", "KlInReward",
    "Lagrangian", "LeaveOut", "LengthBonus", "LengthSwitch", "ListShape", "MarkPositive", "MedianNorm",
    "NegativeWeight", "Novelty", "OverlongMask", "OverlongPenalty", "PassAtK", "PassRateLadder", "PrefixTree", "QuantileNorm",
    "RankFactor", "RewardToGo", "SerialDecay", "ShapeReward", "Shortness", "Shrinkage", "Shuffle", "StratifiedNorm",
    "SubAgentReward", "SumTags", "TemporalBonus", "TrackedPrior", "TreeBackup", "ValidGroups", "ValueTracker", "VirtualNorm",
    "WeightedSum", "anchor_advantage", "anchored_norm", "batch_win_rate", "beta_norm", "beta_parameters",
    "beta_weight", "choice_advantage", "choice_value", "consistent", "copies_norm", "credit", "data_weight",
    "dcg_discount", "diversity_scaled", "draw_another", "dual_step", "episode_advantage", "fairness", "first_useful",
    "gains", "gate", "group_norm", "group_quantile", "group_ranks", "initial_counts", "keep_extremes",
    "length_switch", "list_bonus", "median_norm", "negative_weighted", "novelty_bonus", "order_matters",
    "overlong_penalty", "paired_prompts", "pass_at_k", "pass_rate_ladder", "pivots", "prefix_tree_td", "quantile_norm",
    "rank_factor", "repeats", "reward_to_go", "serial_decay", "shaped", "shortness", "shrunk_baseline",
    "signed_outcome", "silenced", "stratified_norm", "sub_agent_reward", "sum_within", "tracked", "tracker_memory",
    "tree_backup", "uncertainty", "useful_groups", "valid_groups_factor", "virtual_norm", "weighted_sum",
]  # fmt: skip
