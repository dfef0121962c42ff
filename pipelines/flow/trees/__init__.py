"""The shape of a group's rollout as a tree of latents, and how it is grown.

Which tree a method uses is one word in its config; no method by name comes in.
"""

from grpo_mm.registry import Entry

_FLOW = "configs/flow/"

KINDS = (
    Entry("tree", "chains", "grpo_mm.pipelines.flow.trees.branching:Chains", "arXiv:2505.05470", _FLOW + "flow_grpo_sd35.yaml"),
    Entry("tree", "single_steps", "grpo_mm.pipelines.flow.trees.branching:SingleSteps", "arXiv:2510.01982", _FLOW + "g2rpo_flux.yaml"),
    Entry("tree", "clean_images", "grpo_mm.pipelines.flow.trees.branching:CleanImages", "arXiv:2601.20218", _FLOW + "dense_sd35.yaml"),
    Entry("tree", "splits", "grpo_mm.pipelines.flow.trees.branching:Splits", "arXiv:2509.06040", _FLOW + "branch_grpo_flux.yaml"),
    Entry("tree", "unshared", "grpo_mm.pipelines.flow.trees.branching:Unshared"),
)  # fmt: skip
"""What a config can name of this room."""
