"""Model families of the flow pipeline, one small file each: names only, no state; adapters and cards beside them.

No sampler and no method.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("flow_model", "sd3", "grpo_mm.pipelines.flow.models.sd3:Sd3", "arXiv:2403.03206"),
    Entry("flow_model", "flux", "grpo_mm.pipelines.flow.models.flux:Flux"),
)  # fmt: skip
"""What a config can name of this room."""
