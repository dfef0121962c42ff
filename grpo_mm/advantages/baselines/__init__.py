"""What a sample is compared with: the mean, median or quantile of its group, of a stratum, of a fleet, a shrunk or
imagined one, or the best of k.

Stages that remember something between steps live in `state`.
"""

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"

KINDS = (
    Entry("advantage", "group_norm", "grpo_mm.advantages.baselines.group_norm:GroupNorm", "arXiv:2402.03300", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("advantage", "median_norm", "grpo_mm.advantages.baselines.median_norm:MedianNorm", "arXiv:2601.22582"),
    Entry("advantage", "virtual_norm", "grpo_mm.advantages.baselines.virtual_norm:VirtualNorm", "arXiv:2509.18851"),
    Entry("advantage", "stratified_norm", "grpo_mm.advantages.baselines.stratified:StratifiedNorm", "arXiv:2510.06214"),
    Entry("advantage", "shrinkage", "grpo_mm.advantages.baselines.shrinkage:Shrinkage", "arXiv:2603.10848"),
    Entry("advantage", "sub_agent_reward", "grpo_mm.advantages.baselines.agents:SubAgentReward", "arXiv:2511.13288"),
    Entry("advantage", "agent_norm", "grpo_mm.advantages.baselines.agents:AgentNorm", "arXiv:2511.13288"),
    Entry("advantage", "fleet_norm", "grpo_mm.advantages.baselines.fleet_norm:FleetNorm", "arXiv:2507.15351"),
    Entry("advantage", "quantile_norm", "grpo_mm.advantages.baselines.quantile_norm:QuantileNorm", "arXiv:2509.22611"),
    Entry("advantage", "pass_at_k", "grpo_mm.advantages.baselines.pass_at_k:PassAtK", "arXiv:2508.10751"),
)  # fmt: skip
"""What a config can name of this room."""
