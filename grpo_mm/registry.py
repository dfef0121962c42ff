"""The one visible table from (role, kind) to code, with the paper it comes from and a config that uses it.

A `kind` that is not in the table may be `package.module:Name`. Nothing is imported until it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from grpo_mm.errors import ConfigError


@dataclass(frozen=True)
class Role:
    """Marks a field whose value is a component of the table, e.g. Annotated[Any, Role("reward")]."""

    name: str


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    role: str
    kind: str
    target: str
    """package.module:Name; for a preset, the path of its config."""
    paper: str = ""
    config: str = ""


_FLOW = "configs/flow/"
_VIDEO = "configs/video/"
_SPATIAL = "configs/spatial/"

TABLE: tuple[Entry, ...] = (
    Entry("preset", "flow_grpo", _FLOW + "flow_grpo_sd35.yaml", "arXiv:2505.05470", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("preset", "flow_grpo_fast", _FLOW + "fast_sd35.yaml", "arXiv:2505.05470", _FLOW + "fast_sd35.yaml"),
    Entry("preset", "flow_cps", _FLOW + "cps_sd35.yaml", "arXiv:2509.05952", _FLOW + "cps_sd35.yaml"),
    Entry("preset", "grpo_guard", _FLOW + "guard_sd35.yaml", "arXiv:2510.22319", _FLOW + "guard_sd35.yaml"),
    Entry("preset", "dance_grpo", _FLOW + "dance_flux.yaml", "arXiv:2505.07818", _FLOW + "dance_flux.yaml"),
    Entry("preset", "mix_grpo", _FLOW + "mix_flux.yaml", "arXiv:2507.21802", _FLOW + "mix_flux.yaml"),
    Entry("preset", "mix_grpo_flash", _FLOW + "mix_flash_flux.yaml", "arXiv:2507.21802", _FLOW + "mix_flash_flux.yaml"),
    Entry("preset", "flow_grpo_flux", _FLOW + "flow_grpo_flux.yaml", "arXiv:2505.05470", _FLOW + "flow_grpo_flux.yaml"),
    Entry("preset", "flow_grpo_fast_flux", _FLOW + "fast_flux.yaml", "arXiv:2505.05470", _FLOW + "fast_flux.yaml"),
    Entry("preset", "flow_cps_flux", _FLOW + "cps_flux.yaml", "arXiv:2509.05952", _FLOW + "cps_flux.yaml"),
    Entry("preset", "grpo_guard_flux", _FLOW + "guard_flux.yaml", "arXiv:2510.22319", _FLOW + "guard_flux.yaml"),
    Entry("preset", "dance_grpo_sd35", _FLOW + "dance_sd35.yaml", "arXiv:2505.07818", _FLOW + "dance_sd35.yaml"),
    Entry("preset", "mix_grpo_sd35", _FLOW + "mix_sd35.yaml", "arXiv:2507.21802", _FLOW + "mix_sd35.yaml"),
    Entry("preset", "mix_grpo_flash_sd35", _FLOW + "mix_flash_sd35.yaml", "arXiv:2507.21802", _FLOW + "mix_flash_sd35.yaml"),
    Entry("preset", "g2rpo", _FLOW + "g2rpo_flux.yaml", "arXiv:2510.01982", _FLOW + "g2rpo_flux.yaml"),
    Entry("preset", "g2rpo_hps", _FLOW + "g2rpo_hps_flux.yaml", "arXiv:2510.01982", _FLOW + "g2rpo_hps_flux.yaml"),
    Entry("preset", "g2rpo_sd35", _FLOW + "g2rpo_sd35.yaml", "arXiv:2510.01982", _FLOW + "g2rpo_sd35.yaml"),
    Entry("preset", "dense_grpo", _FLOW + "dense_sd35.yaml", "arXiv:2601.20218", _FLOW + "dense_sd35.yaml"),
    Entry("preset", "dense_grpo_calibrated", _FLOW + "dense_calibrated_sd35.yaml", "arXiv:2601.20218", _FLOW + "dense_calibrated_sd35.yaml"),
    Entry("preset", "dense_grpo_flux", _FLOW + "dense_flux.yaml", "arXiv:2601.20218", _FLOW + "dense_flux.yaml"),
    Entry("preset", "pref_grpo", _FLOW + "pref_flux.yaml", "arXiv:2508.20751", _FLOW + "pref_flux.yaml"),
    Entry("preset", "pref_grpo_flex", _FLOW + "pref_flex_flux.yaml", "arXiv:2508.20751", _FLOW + "pref_flex_flux.yaml"),
    Entry("preset", "pref_grpo_sd35", _FLOW + "pref_sd35.yaml", "arXiv:2508.20751", _FLOW + "pref_sd35.yaml"),
    Entry("preset", "tempflow_grpo", _FLOW + "tempflow_sd35.yaml", "arXiv:2508.04324", _FLOW + "tempflow_sd35.yaml"),
    Entry("preset", "tempflow_grpo_flux", _FLOW + "tempflow_flux.yaml", "arXiv:2508.04324", _FLOW + "tempflow_flux.yaml"),
    Entry("preset", "branch_grpo", _FLOW + "branch_grpo_flux.yaml", "arXiv:2509.06040", _FLOW + "branch_grpo_flux.yaml"),
    Entry("preset", "branch_grpo_pruned", _FLOW + "branch_prune_flux.yaml", "arXiv:2509.06040", _FLOW + "branch_prune_flux.yaml"),
    Entry("preset", "tree_grpo", _FLOW + "tree_grpo_sd35.yaml", "arXiv:2512.08153", _FLOW + "tree_grpo_sd35.yaml"),
    Entry("preset", "flow_dppo", _FLOW + "dppo_sd35.yaml", "arXiv:2606.11025", _FLOW + "dppo_sd35.yaml"),
    Entry("preset", "gardo", _FLOW + "gardo_sd35.yaml", "arXiv:2512.24138", _FLOW + "gardo_sd35.yaml"),
    Entry("preset", "gdpo", _FLOW + "gdpo_sd35.yaml", "arXiv:2601.05242", _FLOW + "gdpo_sd35.yaml"),
    Entry("preset", "diffusion_nft", _FLOW + "nft_sd35.yaml", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("preset", "diffusion_nft_multi", _FLOW + "nft_multi_sd35.yaml", "arXiv:2509.16117", _FLOW + "nft_multi_sd35.yaml"),
    Entry("preset", "awm", _FLOW + "awm_sd35.yaml", "arXiv:2509.25050", _FLOW + "awm_sd35.yaml"),
    Entry("preset", "awm_flux", _FLOW + "awm_flux.yaml", "arXiv:2509.25050", _FLOW + "awm_flux.yaml"),
    Entry("preset", "temp_samp_r1", _VIDEO + "tempsamp_qwen25vl_7b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("preset", "temp_samp_r1_downscaling", _VIDEO + "tempsamp_downscaling_qwen25vl_7b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_downscaling_qwen25vl_7b.yaml"),
    Entry("preset", "temp_samp_r1_anchoring", _VIDEO + "tempsamp_anchoring_qwen25vl_7b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_anchoring_qwen25vl_7b.yaml"),
    Entry("preset", "temp_samp_r1_second", _VIDEO + "tempsamp_second_qwen3vl_4b.yaml", "arXiv:2509.18056", _VIDEO + "tempsamp_second_qwen3vl_4b.yaml"),
    Entry("preset", "deep_video_r1", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml", "arXiv:2506.07464", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml"),
    Entry("preset", "grpo_care", _VIDEO + "care_qwen25vl_7b.yaml", "arXiv:2506.16141", _VIDEO + "care_qwen25vl_7b.yaml"),
    Entry("preset", "time_r1", _VIDEO + "time_r1_qwen25vl_7b.yaml", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("preset", "time_r1_finetune", _VIDEO + "time_r1_finetune_qwen25vl_7b.yaml", "arXiv:2503.13377", _VIDEO + "time_r1_finetune_qwen25vl_7b.yaml"),
    Entry("preset", "video_chat_r1", _VIDEO + "videochat_r1_qwen25vl_7b.yaml", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("preset", "video_r1", _VIDEO + "video_r1_qwen25vl_7b.yaml", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("preset", "time_lens", _VIDEO + "timelens_qwen25vl_7b.yaml", "arXiv:2512.14698", _VIDEO + "timelens_qwen25vl_7b.yaml"),
    Entry("preset", "time_lens_qwen3vl", _VIDEO + "timelens_qwen3vl_8b.yaml", "arXiv:2512.14698", _VIDEO + "timelens_qwen3vl_8b.yaml"),
    Entry("preset", "faithful_grpo_7b", _SPATIAL + "fgrpo_qwen25vl_7b.yaml", "arXiv:2604.08476", _SPATIAL + "fgrpo_qwen25vl_7b.yaml"),
    Entry("preset", "faithful_grpo_3b", _SPATIAL + "fgrpo_qwen25vl_3b.yaml", "arXiv:2604.08476", _SPATIAL + "fgrpo_qwen25vl_3b.yaml"),
    Entry("preset", "grit", _SPATIAL + "grit_qwen25vl_3b.yaml", "arXiv:2505.15879", _SPATIAL + "grit_qwen25vl_3b.yaml"),
    Entry("preset", "grit_judge", _SPATIAL + "grit_judge_qwen25vl_3b.yaml", "arXiv:2505.15879", _SPATIAL + "grit_judge_qwen25vl_3b.yaml"),
    Entry("preset", "grpo_care_image", _SPATIAL + "care_image_qwen25vl_7b.yaml", "arXiv:2506.16141", _SPATIAL + "care_image_qwen25vl_7b.yaml"),
    Entry("preset", "tree_vgr", _SPATIAL + "treevgr_qwen25vl_7b.yaml", "arXiv:2507.07999", _SPATIAL + "treevgr_qwen25vl_7b.yaml"),
    Entry("preset", "vlm_r1_rec", _SPATIAL + "vlm_r1_rec_qwen25vl_3b.yaml", "arXiv:2504.07615", _SPATIAL + "vlm_r1_rec_qwen25vl_3b.yaml"),
    Entry("preset", "vlm_r1_detection", _SPATIAL + "vlm_r1_detection_qwen25vl_3b.yaml", "arXiv:2504.07615", _SPATIAL + "vlm_r1_detection_qwen25vl_3b.yaml"),
    Entry("preset", "visual_rft", _SPATIAL + "visual_rft_qwen2vl_2b.yaml", "arXiv:2503.01785", _SPATIAL + "visual_rft_qwen2vl_2b.yaml"),
    Entry("preset", "perception_r1", _SPATIAL + "perception_r1_qwen2vl_2b.yaml", "arXiv:2504.07954", _SPATIAL + "perception_r1_qwen2vl_2b.yaml"),
    Entry("preset", "spacer", _SPATIAL + "spacer_qwen25vl_7b.yaml", "arXiv:2504.01805", _SPATIAL + "spacer_qwen25vl_7b.yaml"),
    Entry("preset", "vigorl", _SPATIAL + "vigorl_qwen25vl_7b.yaml", "arXiv:2505.23678", _SPATIAL + "vigorl_qwen25vl_7b.yaml"),
    Entry("policy", "flow", "grpo_mm.pipelines.flow.policy:FlowPolicyConfig", "arXiv:2505.05470"),
    Entry("flow_model", "sd3", "grpo_mm.pipelines.flow.models.sd3:Sd3", "arXiv:2403.03206"),
    Entry("flow_model", "flux", "grpo_mm.pipelines.flow.models.flux:Flux"),
    Entry("engine", "flow", "grpo_mm.pipelines.flow.engines.engine:FlowEngine", "arXiv:2505.05470"),
    Entry("policy", "vlm", "grpo_mm.pipelines.vlm.policy:VlmPolicyConfig"),
    Entry("engine", "vlm", "grpo_mm.pipelines.vlm.engine:VlmEngine"),
    Entry("generator", "hf", "grpo_mm.pipelines.vlm.sampling.generation:HfGenerator"),
    Entry("demonstration", "last_row", "grpo_mm.pipelines.video_grounding.demonstrations:LastRow", "arXiv:2509.18056"),
    Entry("engine", "forward_process", "grpo_mm.pipelines.flow.engines.forward:ForwardProcess", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("draws", "every_timestep", "grpo_mm.pipelines.flow.engines.forward:EveryTimestep", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("draws", "stratified", "grpo_mm.pipelines.flow.engines.forward:Stratified", "arXiv:2509.25050", _FLOW + "awm_sd35.yaml"),
    Entry("schedule", "shifted", "grpo_mm.pipelines.flow.schedule:Shifted", "arXiv:2403.03206"),
    Entry("schedule", "flux", "grpo_mm.pipelines.flow.schedule:FluxShift"),
    Entry("schedule", "diffusers_sd3", "grpo_mm.pipelines.flow.schedule:DiffusersSd3"),
    Entry("sampler", "ode", "grpo_mm.pipelines.flow.kernels:ode"),
    Entry("sampler", "flow_sde", "grpo_mm.pipelines.flow.kernels:flow_sde", "arXiv:2505.05470", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("sampler", "dance_sde", "grpo_mm.pipelines.flow.kernels:dance_sde", "arXiv:2505.07818", _FLOW + "dance_flux.yaml"),
    Entry("sampler", "cps", "grpo_mm.pipelines.flow.kernels:cps", "arXiv:2509.05952", _FLOW + "cps_sd35.yaml"),
    Entry("sampler", "ddim", "grpo_mm.pipelines.flow.kernels:ddim", "arXiv:2509.16117"),
    Entry("noise", "all", "grpo_mm.pipelines.flow.noise:AllSteps", "arXiv:2505.05470", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("noise", "window", "grpo_mm.pipelines.flow.noise:Window", "arXiv:2505.05470", _FLOW + "fast_sd35.yaml"),
    Entry("noise", "sliding_window", "grpo_mm.pipelines.flow.noise:SlidingWindow", "arXiv:2507.21802", _FLOW + "mix_flux.yaml"),
    Entry("noise", "geometric_window", "grpo_mm.pipelines.flow.noise:GeometricWindow", "arXiv:2512.08153", _FLOW + "tree_grpo_sd35.yaml"),
    Entry("noise", "calibrated", "grpo_mm.pipelines.flow.calibrated:Calibrated", "arXiv:2601.20218", _FLOW + "dense_calibrated_sd35.yaml"),
    Entry("noise", "noise_file", "grpo_mm.pipelines.flow.calibrated:NoiseFile", "arXiv:2601.20218"),
    Entry("noise", "levels", "grpo_mm.pipelines.flow.noise:Levels"),
    Entry("tree", "chains", "grpo_mm.pipelines.flow.trees.branching:Chains", "arXiv:2505.05470", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("tree", "single_steps", "grpo_mm.pipelines.flow.trees.branching:SingleSteps", "arXiv:2510.01982", _FLOW + "g2rpo_flux.yaml"),
    Entry("tree", "clean_images", "grpo_mm.pipelines.flow.trees.branching:CleanImages", "arXiv:2601.20218", _FLOW + "dense_sd35.yaml"),
    Entry("tree", "splits", "grpo_mm.pipelines.flow.trees.branching:Splits", "arXiv:2509.06040", _FLOW + "branch_grpo_flux.yaml"),
    Entry("tree", "unshared", "grpo_mm.pipelines.flow.trees.branching:Unshared"),
    Entry("solver", "euler", "grpo_mm.pipelines.flow.solver:Euler"),
    Entry("solver", "dpmpp", "grpo_mm.pipelines.flow.solver:DpmSolverPP", "arXiv:2211.01095", _FLOW + "mix_flash_flux.yaml"),
    Entry("strategy", "dynamic_sampling", "grpo_mm.rollout.collectors.dynamic_sampling:DynamicSampling", "arXiv:2503.14476"),
    Entry("strategy", "prioritised", "grpo_mm.rollout.collectors.prioritised:Prioritised", "arXiv:2509.13232"),
    Entry("strategy", "allocate", "grpo_mm.rollout.collectors.allocate:Allocate", "arXiv:2602.03584"),
    Entry("strategy", "unsolved", "grpo_mm.rollout.collectors.unsolved:Unsolved", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("strategy", "shuffled_frames", "grpo_mm.pipelines.video_grounding.shuffled_frames:MeasureShuffled", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("strategy", "difficulty", "grpo_mm.pipelines.video_grounding.difficulty:DifficultyAugmentation", "arXiv:2506.07464", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml"),
    Entry("allocation", "by_success", "grpo_mm.rollout.collectors.allocate:BySuccess", "arXiv:2602.03584"),
    Entry("allocation", "by_uncertainty", "grpo_mm.rollout.collectors.allocate:ByUncertainty", "arXiv:2510.06672"),
    Entry("allocation", "look_ahead", "grpo_mm.rollout.collectors.allocate:LookAhead", "arXiv:2603.10848"),
    Entry("strategy", "sample_and_score", "grpo_mm.rollout.collectors.sample_and_score:SampleAndScore"),
    Entry("advantage", "group_norm", "grpo_mm.advantages.baselines.group_norm:GroupNorm", "arXiv:2402.03300", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("advantage", "weighted_sum", "grpo_mm.advantages.combination.combine:WeightedSum", "", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("advantage", "clamp", "grpo_mm.advantages.combination.combine:Clamp", "", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("advantage", "keep_extremes", "grpo_mm.advantages.masks.select:KeepExtremes", "arXiv:2505.07818"),
    Entry("advantage", "gains", "grpo_mm.advantages.actions.gains:Gains", "arXiv:2601.20218", _FLOW + "dense_sd35.yaml"),
    Entry("advantage", "sum_tags", "grpo_mm.advantages.actions.sum_tags:SumTags", "arXiv:2510.01982", _FLOW + "g2rpo_flux.yaml"),
    Entry("advantage", "tree_backup", "grpo_mm.advantages.actions.tree_backup:TreeBackup", "arXiv:2509.06040", _FLOW + "branch_grpo_flux.yaml"),
    Entry("advantage", "gardo_gate", "grpo_mm.advantages.scales.gardo:GardoGate", "arXiv:2512.24138", _FLOW + "gardo_sd35.yaml"),
    Entry("advantage", "diversity_scale", "grpo_mm.advantages.scales.gardo:DiversityScale", "arXiv:2512.24138", _FLOW + "gardo_sd35.yaml"),
    Entry("advantage", "overlong_penalty", "grpo_mm.advantages.bonuses.reward_terms:OverlongPenalty", "arXiv:2503.14476"),
    Entry("advantage", "kl_in_reward", "grpo_mm.advantages.bonuses.reward_terms:KlInReward", "arXiv:2402.14740"),
    Entry("advantage", "drop_degenerate", "grpo_mm.advantages.masks.drop_degenerate:DropDegenerate", "arXiv:2503.14476"),
    Entry("advantage", "overlong_mask", "grpo_mm.advantages.masks.truncation:OverlongMask", "arXiv:2503.14476"),
    Entry("advantage", "conditional_truncation_mask", "grpo_mm.advantages.masks.truncation:ConditionalTruncationMask", "arXiv:2603.07777"),
    Entry("advantage", "beta_norm", "grpo_mm.advantages.scales.beta_norm:BetaNorm", "arXiv:2506.02864"),
    Entry("advantage", "average", "grpo_mm.advantages.combination.average:Average", "arXiv:2506.02864"),
    Entry("advantage", "median_norm", "grpo_mm.advantages.baselines.median_norm:MedianNorm", "arXiv:2601.22582"),
    Entry("advantage", "virtual_norm", "grpo_mm.advantages.baselines.virtual_norm:VirtualNorm", "arXiv:2509.18851"),
    Entry("advantage", "stratified_norm", "grpo_mm.advantages.baselines.stratified:StratifiedNorm", "arXiv:2510.06214"),
    Entry("advantage", "value_tracker", "grpo_mm.advantages.state.value_tracker:ValueTracker", "arXiv:2509.13232"),
    Entry("advantage", "tracked_prior", "grpo_mm.advantages.state.value_tracker:TrackedPrior", "arXiv:2509.13232"),
    Entry("advantage", "shrinkage", "grpo_mm.advantages.baselines.shrinkage:Shrinkage", "arXiv:2603.10848"),
    Entry("advantage", "negative_weight", "grpo_mm.advantages.scales.negative_weight:NegativeWeight", "arXiv:2602.03452"),
    Entry("advantage", "reward_to_go", "grpo_mm.advantages.actions.reward_to_go:RewardToGo", "arXiv:2510.20150"),
    Entry("advantage", "list_shape", "grpo_mm.advantages.bonuses.list_shape:ListShape", "arXiv:2510.20150"),
    Entry("advantage", "anchor_states", "grpo_mm.advantages.actions.anchor_states:AnchorStates", "arXiv:2505.10978"),
    Entry("advantage", "prefix_tree", "grpo_mm.advantages.actions.prefix_tree:PrefixTree", "arXiv:2509.18314"),
    Entry("advantage", "sub_agent_reward", "grpo_mm.advantages.baselines.agents:SubAgentReward", "arXiv:2511.13288"),
    Entry("advantage", "agent_norm", "grpo_mm.advantages.baselines.agents:AgentNorm", "arXiv:2511.13288"),
    Entry("advantage", "choice_value", "grpo_mm.advantages.actions.choices:ChoiceValue", "arXiv:2603.02701"),
    Entry("advantage", "fleet_norm", "grpo_mm.advantages.baselines.fleet_norm:FleetNorm", "arXiv:2507.15351"),
    Entry("advantage", "serial_decay", "grpo_mm.advantages.bonuses.serial_decay:SerialDecay", "arXiv:2505.07686"),
    Entry("advantage", "leave_out", "grpo_mm.advantages.masks.leave_out:LeaveOut", "arXiv:2505.07686"),
    Entry("advantage", "mark_positive", "grpo_mm.advantages.combination.outcome:MarkPositive", "arXiv:2505.12366"),
    Entry("advantage", "shortness", "grpo_mm.advantages.combination.outcome:Shortness", "arXiv:2510.04474"),
    Entry("advantage", "gate", "grpo_mm.advantages.combination.gate:Gate", "arXiv:2508.05170"),
    Entry("advantage", "shape_reward", "grpo_mm.advantages.bonuses.demonstrations:ShapeReward", "arXiv:2509.18056", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("advantage", "cap_demonstrations", "grpo_mm.advantages.bonuses.demonstrations:CapDemonstrations", "arXiv:2509.18056", _VIDEO + "tempsamp_downscaling_qwen25vl_7b.yaml"),
    Entry("advantage", "anchored_norm", "grpo_mm.advantages.bonuses.demonstrations:AnchoredNorm", "arXiv:2509.18056", _VIDEO + "tempsamp_anchoring_qwen25vl_7b.yaml"),
    Entry("advantage", "exempt_demonstrations", "grpo_mm.advantages.bonuses.demonstrations:ExemptDemonstrations", "arXiv:2509.18056", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("advantage", "consistency_bonus", "grpo_mm.advantages.bonuses.consistency_bonus:ConsistencyBonus", "arXiv:2506.16141", _VIDEO + "care_qwen25vl_7b.yaml"),
    Entry("advantage", "temporal_bonus", "grpo_mm.advantages.bonuses.temporal_bonus:TemporalBonus", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("advantage", "length_bonus", "grpo_mm.advantages.bonuses.temporal_bonus:LengthBonus", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("advantage", "length_switch", "grpo_mm.advantages.bonuses.length_switch:LengthSwitch", "arXiv:2505.18086"),
    Entry("advantage", "rank_factor", "grpo_mm.advantages.scales.rank_factor:RankFactor", "arXiv:2506.02355"),
    Entry("advantage", "novelty", "grpo_mm.advantages.bonuses.novelty:Novelty", "arXiv:2510.06672"),
    Entry("advantage", "pass_rate_ladder", "grpo_mm.advantages.bonuses.pass_rate_ladder:PassRateLadder", "arXiv:2602.03806"),
    Entry("advantage", "lagrangian", "grpo_mm.advantages.state.lagrangian:Lagrangian", "arXiv:2604.08476"),
    Entry("advantage", "quantile_norm", "grpo_mm.advantages.baselines.quantile_norm:QuantileNorm", "arXiv:2509.22611"),
    Entry("advantage", "shuffle", "grpo_mm.advantages.masks.shuffle:Shuffle"),
    Entry("objective", "clipped_ratio", "grpo_mm.objectives.clipped_ratio:ClippedRatio", "arXiv:1707.06347", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("objective", "ratio_norm", "grpo_mm.objectives.ratio_norm:RatioNorm", "arXiv:2510.22319", _FLOW + "guard_sd35.yaml"),
    Entry("objective", "divergence_mask", "grpo_mm.objectives.divergence_mask:DivergenceMask", "arXiv:2606.11025", _FLOW + "dppo_sd35.yaml"),
    Entry("objective", "nft", "grpo_mm.objectives.nft:Nft", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("objective", "awm", "grpo_mm.objectives.awm:Awm", "arXiv:2509.25050", _FLOW + "awm_sd35.yaml"),
    Entry("objective", "cispo", "grpo_mm.objectives.cispo:Cispo", "arXiv:2506.13585"),
    Entry("objective", "sapo", "grpo_mm.objectives.sapo:Sapo", "arXiv:2511.20347"),
    Entry("objective", "gmpo", "grpo_mm.objectives.gmpo:Gmpo", "arXiv:2507.20673"),
    Entry("objective", "kl_cov", "grpo_mm.objectives.kl_cov:KlCov", "arXiv:2505.22617"),
    Entry("objective", "truncated", "grpo_mm.objectives.truncated:Truncated", "arXiv:1802.01561"),
    Entry("objective", "disco", "grpo_mm.objectives.disco:Disco", "arXiv:2505.12366"),
    Entry("objective", "hinge_kl", "grpo_mm.objectives.hinge_kl:HingeKl", "arXiv:2505.12366"),
    Entry("objective", "grao", "grpo_mm.objectives.grao:Grao", "arXiv:2508.07750"),
    Entry("objective", "regression", "grpo_mm.objectives.regression:Regression", "arXiv:2506.07464", _VIDEO + "deepvideo_r1_qwen25vl_3b.yaml"),
    Entry("objective", "kl", "grpo_mm.objectives.kl:Kl", "arXiv:2402.03300", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("prompts", "file", "grpo_mm.datasets.shared.files:PromptFile"),
    Entry("prompts", "geneval", "grpo_mm.datasets.images.geneval:GenEvalPrompts", "arXiv:2310.11513"),
    Entry("prompts", "ocr", "grpo_mm.datasets.images.ocr:OcrPrompts", "arXiv:2505.05470"),
    Entry("prompts", "hub", "grpo_mm.datasets.shared.hub:HubPrompts"),
    Entry("prompts", "shape_world", "grpo_mm.datasets.worlds.shape_world:ShapeWorldPrompts", "", "configs/quickstart/flow.yaml"),
    Entry("prompts", "clip_world", "grpo_mm.datasets.worlds.clip_world:ClipWorld", "", "configs/quickstart/video.yaml"),
    Entry("prompts", "swapped", "grpo_mm.datasets.shared.swapped:Swapped"),
    Entry("prompts", "blanked", "grpo_mm.datasets.spatial.blanked:Blanked"),
    Entry("prompts", "scene_world", "grpo_mm.datasets.worlds.scene_world:SceneWorld", "", "configs/quickstart/spatial.yaml"),
    Entry("prompts", "charades_sta", "grpo_mm.datasets.video.charades_sta:CharadesSta", "arXiv:1705.02101", _VIDEO + "tempsamp_qwen25vl_7b.yaml"),
    Entry("prompts", "activitynet_captions", "grpo_mm.datasets.video.activitynet_captions:ActivityNetCaptions", "arXiv:1705.00754"),
    Entry("prompts", "qvhighlights", "grpo_mm.datasets.video.qvhighlights:QVHighlights", "arXiv:2107.09609"),
    Entry("prompts", "tvgbench", "grpo_mm.datasets.video.tvgbench:TvgBench", "arXiv:2503.13377"),
    Entry("prompts", "timelens_bench", "grpo_mm.datasets.video.timelens:TimeLensBench", "arXiv:2512.14698", _VIDEO + "timelens_qwen25vl_7b.yaml"),
    Entry("prompts", "timelens_100k", "grpo_mm.datasets.video.timelens:TimeLens100K", "arXiv:2512.14698", _VIDEO + "timelens_qwen25vl_7b.yaml"),
    Entry("prompts", "got10k", "grpo_mm.datasets.video.got10k:Got10k", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "video_quality", "grpo_mm.datasets.video.video_quality:VideoQuality", "arXiv:2504.06958"),
    Entry("prompts", "time_r1", "grpo_mm.datasets.video.tvgbench:TimeR1Rows", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "nextgqa", "grpo_mm.datasets.video.nextgqa:NextGqa", "arXiv:2309.01327", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "video_r1", "grpo_mm.datasets.video.video_r1:VideoR1Questions", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("prompts", "messages", "grpo_mm.datasets.chat.messages:Messages"),
    Entry("prompts", "conversations", "grpo_mm.datasets.chat.conversations:Conversations", "arXiv:2504.07615"),
    Entry("prompts", "vsr", "grpo_mm.datasets.spatial.vsr:Vsr", "arXiv:2205.00363"),
    Entry("prompts", "sat", "grpo_mm.datasets.spatial.sat:Sat", "arXiv:2412.07755"),
    Entry("prompts", "cv_bench", "grpo_mm.datasets.spatial.cv_bench:CvBench", "arXiv:2406.16860"),
    Entry("prompts", "mmvp", "grpo_mm.datasets.spatial.mmvp:Mmvp", "arXiv:2401.06209"),
    Entry("prompts", "blink", "grpo_mm.datasets.spatial.blink:Blink", "arXiv:2404.12390"),
    Entry("prompts", "vsi_bench", "grpo_mm.datasets.video.vsi_bench:VsiBench", "arXiv:2412.14171"),
    Entry("prompts", "tallyqa", "grpo_mm.datasets.spatial.tallyqa:TallyQa", "arXiv:1810.12440"),
    Entry("prompts", "grounded_cot", "grpo_mm.datasets.spatial.grounded_cot:GroundedCot", "arXiv:2505.15879"),
    Entry("prompts", "referring", "grpo_mm.datasets.spatial.referring:Referring", "arXiv:1608.00272"),
    Entry("media", "frame_store", "grpo_mm.datasets.media.frame_store:FrameStore", "", "configs/quickstart/video.yaml"),
    Entry("reward", "shape_world", "grpo_mm.rewards.images.shape_world:ShapeWorldReward", "", "configs/quickstart/flow.yaml"),
    Entry("reward", "geneval", "grpo_mm.rewards.images.geneval:GenEvalReward", "arXiv:2310.11513"),
    Entry("reward", "ocr", "grpo_mm.rewards.images.ocr:OcrReward", "arXiv:2505.05470"),
    Entry("reward", "clip_score", "grpo_mm.rewards.images.clip_score:ClipScore", "arXiv:2104.08718"),
    Entry("reward", "pick_score", "grpo_mm.rewards.images.pick_score:PickScore", "arXiv:2305.01569"),
    Entry("reward", "hps", "grpo_mm.rewards.images.hps:Hps", "arXiv:2306.09341"),
    Entry("reward", "image_reward", "grpo_mm.rewards.images.image_reward:ImageReward", "arXiv:2304.05977"),
    Entry("reward", "aesthetic", "grpo_mm.rewards.images.aesthetic:Aesthetic", "arXiv:2305.13301"),
    Entry("reward", "vlm_yes_no", "grpo_mm.rewards.images.vlm_yes_no:VlmYesNo", "arXiv:2404.01291"),
    Entry("reward", "nearest_neighbour", "grpo_mm.rewards.images.nearest_neighbour:NearestNeighbour", "arXiv:2512.24138"),
    Entry("reward", "quality_guard", "grpo_mm.rewards.images.quality_guard:QualityGuard"),
    Entry("reward", "jpeg", "grpo_mm.rewards.images.jpeg:JpegSize", "arXiv:2305.13301"),
    Entry("reward", "image_quality", "grpo_mm.rewards.images.image_quality:ImageQuality", "", "configs/quickstart/flow.yaml"),
    Entry("reward", "function", "grpo_mm.rollout.function_reward:FunctionReward"),
    Entry("reward", "peer_similarity", "grpo_mm.rewards.text.peer_similarity:PeerSimilarity", "arXiv:2510.04392"),
    Entry("reward", "information_consistency", "grpo_mm.rewards.text.information_consistency:InformationConsistency", "arXiv:2512.12858"),
    Entry("reward", "answer_f1", "grpo_mm.rewards.text.text_overlap:AnswerF1"),
    Entry("reward", "win_rate", "grpo_mm.rewards.judges.win_rate:WinRate", "arXiv:2508.20751"),
    Entry("reward", "unified_reward", "grpo_mm.rewards.judges.unified_reward:UnifiedReward", "arXiv:2503.05236"),
    Entry("reward", "temporal_iou", "grpo_mm.rewards.video.temporal_iou:TemporalIou", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("reward", "timestamp_matching", "grpo_mm.rewards.video.timestamp_matching:TimestampMatching", "arXiv:2509.18056"),
    Entry("reward", "tag_format", "grpo_mm.rewards.text.tag_format:TagFormat", "arXiv:2503.13377", _VIDEO + "time_r1_qwen25vl_7b.yaml"),
    Entry("reward", "typed_answer", "grpo_mm.rewards.text.typed_answer:TypedAnswer", "arXiv:2503.21776", _VIDEO + "video_r1_qwen25vl_7b.yaml"),
    Entry("reward", "box_track", "grpo_mm.rewards.video.box_track:BoxTrack", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("reward", "box_track_format", "grpo_mm.rewards.video.box_track:BoxTrackFormat", "arXiv:2504.06958", _VIDEO + "videochat_r1_qwen25vl_7b.yaml"),
    Entry("reward", "response_length", "grpo_mm.rewards.text.response_length:ResponseLength", "arXiv:2503.21776"),
    Entry("reward", "spatial_grounding", "grpo_mm.rewards.spatial.box_grounding:SpatialGrounding", "arXiv:2604.08476"),
    Entry("reward", "dual_box_iou", "grpo_mm.rewards.spatial.box_grounding:DualBoxIou", "arXiv:2507.07999"),
    Entry("reward", "union_box_iou", "grpo_mm.rewards.spatial.box_grounding:UnionBoxIou", "arXiv:2505.15879"),
    Entry("reward", "grit_format", "grpo_mm.rewards.spatial.grit:GritFormat", "arXiv:2505.15879"),
    Entry("reward", "grit_count", "grpo_mm.rewards.spatial.grit:GritCount", "arXiv:2505.15879"),
    Entry("reward", "grit_answer", "grpo_mm.rewards.spatial.grit:GritAnswer", "arXiv:2505.15879"),
    Entry("reward", "repetition", "grpo_mm.rewards.text.repetition:Repetition", "arXiv:2505.15879"),
    Entry("reward", "referring_box", "grpo_mm.rewards.spatial.referring_box:ReferringBox", "arXiv:2504.07615"),
    Entry("reward", "box_answer_format", "grpo_mm.rewards.spatial.referring_box:BoxAnswerFormat", "arXiv:2504.07615"),
    Entry("reward", "detection_map", "grpo_mm.rewards.spatial.detection_map:DetectionMap", "arXiv:2504.07615"),
    Entry("reward", "detection_confidence", "grpo_mm.rewards.spatial.detection_confidence:DetectionConfidence", "arXiv:2503.01785"),
    Entry("reward", "perception_boxes", "grpo_mm.rewards.spatial.perception_boxes:PerceptionBoxes", "arXiv:2504.07954"),
    Entry("reward", "edit_similarity", "grpo_mm.rewards.text.edit_similarity:EditSimilarity", "arXiv:2504.07954"),
    Entry("reward", "spacer", "grpo_mm.rewards.spatial.spacer:SpacerAnswer", "arXiv:2504.01805"),
    Entry("reward", "vigorl", "grpo_mm.rewards.spatial.vigorl:Vigorl", "arXiv:2505.23678"),
    Entry("reward", "mean_relative_accuracy", "grpo_mm.rewards.text.mean_relative_accuracy:MeanRelativeAccuracy", "arXiv:2412.14171"),
    Entry("reward", "consistency", "grpo_mm.rewards.faithfulness.consistency:Consistency", "arXiv:2604.08476"),
    Entry("reward", "semantic_grounding", "grpo_mm.rewards.faithfulness.semantic_grounding:SemanticGrounding", "arXiv:2604.08476"),
    Entry("reward", "answer_judge", "grpo_mm.rewards.faithfulness.answer_judge:AnswerJudge", "arXiv:2505.15879"),
    Entry("benchmark", "temporal_grounding", "grpo_mm.rewards.benchmarks.temporal_grounding:TemporalGrounding", "arXiv:1705.02101"),
    Entry("benchmark", "best_of_modes", "grpo_mm.rewards.benchmarks.temporal_grounding:BestOfModes", "arXiv:2509.18056"),
    Entry("benchmark", "moment_retrieval", "grpo_mm.rewards.benchmarks.moments:MomentRetrieval", "arXiv:2107.09609"),
    Entry("benchmark", "highlights", "grpo_mm.rewards.benchmarks.moments:Highlights", "arXiv:2107.09609"),
    Entry("benchmark", "grounded_qa", "grpo_mm.rewards.benchmarks.grounded_qa:GroundedQa", "arXiv:2309.01327"),
    Entry("benchmark", "cv_bench", "grpo_mm.rewards.benchmarks.spatial:CvBench", "arXiv:2406.16860"),
    Entry("benchmark", "blink", "grpo_mm.rewards.benchmarks.spatial:Blink", "arXiv:2404.12390"),
    Entry("benchmark", "mmvp", "grpo_mm.rewards.benchmarks.spatial:Mmvp", "arXiv:2401.06209"),
    Entry("benchmark", "sat", "grpo_mm.rewards.benchmarks.spatial:Sat", "arXiv:2412.07755"),
    Entry("benchmark", "vsr", "grpo_mm.rewards.benchmarks.spatial:Vsr", "arXiv:2205.00363"),
    Entry("benchmark", "vsi_bench", "grpo_mm.rewards.benchmarks.vsi_bench:VsiBench", "arXiv:2412.14171"),
    Entry("benchmark", "tallyqa", "grpo_mm.rewards.benchmarks.tallyqa:TallyQa", "arXiv:1810.12440"),
    Entry("benchmark", "referring", "grpo_mm.rewards.benchmarks.referring:ReferringBoxes", "arXiv:1608.00272"),
    Entry("prediction_file", "qvhighlights", "grpo_mm.rewards.benchmarks.prediction_files:QVHighlightsFile", "arXiv:2107.09609"),
    Entry("prediction_file", "charades", "grpo_mm.rewards.benchmarks.prediction_files:CharadesFile", "arXiv:1705.02101"),
    Entry("prediction_file", "activitynet", "grpo_mm.rewards.benchmarks.prediction_files:ActivityNetFile", "arXiv:1705.00754"),
    Entry("prediction_file", "timelens_bench", "grpo_mm.rewards.benchmarks.prediction_files:TimeLensFile", "arXiv:2512.14698"),
    Entry("prediction_file", "tvgbench", "grpo_mm.rewards.benchmarks.prediction_files:TvgBenchFile", "arXiv:2503.13377"),
    Entry("prediction_file", "nextgqa", "grpo_mm.rewards.benchmarks.prediction_files:NextGqaFile", "arXiv:2309.01327"),
    Entry("prediction_file", "blink", "grpo_mm.rewards.benchmarks.spatial_prediction_files:BlinkFile", "arXiv:2404.12390"),
    Entry("sketch", "time_line", "grpo_mm.rewards.video.time_line:TimeLine", "", "configs/quickstart/video.yaml"),
    Entry("sketch", "boxes", "grpo_mm.rewards.spatial.box_sketch:BoxSketch"),
    Entry("judge", "pointwise", "grpo_mm.rewards.judges.comparing:PointwiseJudge"),
    Entry("judge", "transformers", "grpo_mm.rewards.judges.comparing:TransformersJudge", "arXiv:2505.03318"),
    Entry("judge", "server", "grpo_mm.rewards.judges.comparing:ServerJudge", "arXiv:2505.03318"),
    Entry("verdict", "model", "grpo_mm.rewards.judges.verdicts:ModelJudge", "arXiv:2604.08476"),
    Entry("vlm", "transformers", "grpo_mm.rewards.judges.vlm:TransformersVlm"),
    Entry("vlm", "server", "grpo_mm.rewards.judges.vlm_server:ServerVlm"),
    Entry("color", "palette", "grpo_mm.rewards.images.colors:PaletteColors"),
    Entry("color", "clip", "grpo_mm.rewards.images.colors:ClipColors", "arXiv:2310.11513"),
    Entry("detector", "onnx", "grpo_mm.rewards.images.detectors:OnnxDetector"),
    Entry("detector", "transformers", "grpo_mm.rewards.images.detectors:TransformersDetector"),
)  # fmt: skip


def entries(role: str | None = None) -> list[Entry]:
    """The table, or the lines of one role."""
    return [entry for entry in TABLE if role is None or entry.role == role]


def lookup(role: str, kind: str) -> Any:
    """The class or function behind a kind; raises ConfigError with the nearest name."""
    for entry in TABLE:
        if entry.role == role and entry.kind == kind:
            return load(entry.target)
    if ":" in kind:
        return load(kind)
    kinds = [entry.kind for entry in entries(role)]
    near = difflib.get_close_matches(kind, kinds, n=1)
    raise ConfigError(
        f"unknown {role} kind {kind!r}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" There are: {', '.join(kinds)}; or package.module:Name for your own."
    )


def load(target: str) -> Any:
    """Imports `package.module:Name`."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(
            f"{target!r}: no module named {error.name!r}. Is it installed, or in the folder you start from?"
        ) from error
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if inspect.isclass(v) or inspect.isfunction(v)]
        near = difflib.get_close_matches(name, public, n=1)
        raise ConfigError(
            f"{target!r}: {module_name} has no {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    return getattr(module, name)


def kind_of(role: str, thing: Any) -> str:
    """The inverse of `lookup`: the kind of an object's class, or of a function."""
    cls = thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
    for entry in entries(role):
        module_name, _, name = entry.target.partition(":")
        if (cls.__module__, cls.__name__) == (module_name, name):
            return entry.kind
    return f"{cls.__module__}:{cls.__qualname__}"
