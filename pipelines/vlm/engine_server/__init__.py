"""vLLM as a server: starting one, what it answers beside vLLM's own paths, and the generator that asks servers for answers.

Of drawing itself only what crosses between processes: how rows are asked, read and compared is `sampling`'s. No pickle comes in.
"""

from grpo_mm.registry import Entry

KINDS = (
    Entry("generator", "vllm_server", "grpo_mm.pipelines.vlm.engine_server.vllm_server:VllmServer"),
)  # fmt: skip
"""What a config can name of this room."""
