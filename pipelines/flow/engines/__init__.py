"""Engines of the flow pipeline: rows to pictures by trees of denoising steps, or draws on finished samples (forward
process); calibration of noise.

What single steps do lives one room up, in kernels, noise, schedule and solver.
"""

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"

KINDS = (
    Entry("engine", "flow", "grpo_mm.pipelines.flow.engines.engine:FlowEngine", "arXiv:2505.05470"),
    Entry("engine", "forward_process", "grpo_mm.pipelines.flow.engines.forward:ForwardProcess", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("draws", "every_timestep", "grpo_mm.pipelines.flow.engines.forward:EveryTimestep", "arXiv:2509.16117", _FLOW + "nft_sd35.yaml"),
    Entry("draws", "stratified", "grpo_mm.pipelines.flow.engines.forward:Stratified", "arXiv:2509.25050", _FLOW + "awm_sd35.yaml"),
)  # fmt: skip
"""What a config can name of this room."""
