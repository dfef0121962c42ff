"""Readers of published questions and boxes on pictures.

Decoding lives in `media`.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("prompts", "vsr", "grpo_mm.datasets.spatial.vsr:Vsr", "arXiv:2205.00363"),
    Entry("prompts", "sat", "grpo_mm.datasets.spatial.sat:Sat", "arXiv:2412.07755"),
    Entry("prompts", "cv_bench", "grpo_mm.datasets.spatial.cv_bench:CvBench", "arXiv:2406.16860"),
    Entry("prompts", "mmvp", "grpo_mm.datasets.spatial.mmvp:Mmvp", "arXiv:2401.06209"),
    Entry("prompts", "blink", "grpo_mm.datasets.spatial.blink:Blink", "arXiv:2404.12390"),
    Entry("prompts", "tallyqa", "grpo_mm.datasets.spatial.tallyqa:TallyQa", "arXiv:1810.12440"),
    Entry("prompts", "grounded_cot", "grpo_mm.datasets.spatial.grounded_cot:GroundedCot", "arXiv:2505.15879"),
    Entry("prompts", "referring", "grpo_mm.datasets.spatial.referring:Referring", "arXiv:1608.00272"),
)  # fmt: skip
"""What a config can name of this room."""
