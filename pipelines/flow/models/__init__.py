"""Model families of the flow pipeline, one small file each: names only, no state; adapters and cards beside them.

No sampler and no method.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("flow_model", "sd3", "grpo_mm.pipelines.flow.models.sd3:Sd3", "arXiv:2403.03206"),
    Entry("flow_model", "flux", "grpo_mm.pipelines.flow.models.flux:Flux"),
    Entry("flow_model", "flux2", "grpo_mm.pipelines.flow.models.flux2:Flux2"),
    Entry("flow_model", "flux2_klein", "grpo_mm.pipelines.flow.models.flux2:Flux2Klein"),
    Entry("flow_model", "z_image", "grpo_mm.pipelines.flow.models.z_image:ZImage", "arXiv:2511.22699"),
    Entry("flow_model", "wan", "grpo_mm.pipelines.flow.models.wan:Wan", "arXiv:2503.20314"),
    Entry("flow_model", "wan_i2v", "grpo_mm.pipelines.flow.models.wan_i2v:WanI2V", "arXiv:2503.20314"),
    Entry("flow_model", "qwen_image", "grpo_mm.pipelines.flow.models.qwen_image:QwenImage", "arXiv:2508.02324"),
    Entry("flow_model", "qwen_image21", "grpo_mm.pipelines.flow.models.qwen_image21:QwenImage21"),
    Entry("flow_model", "sana", "grpo_mm.pipelines.flow.models.sana:Sana", "arXiv:2410.10629"),
)  # fmt: skip
"""What a config can name of this room."""
