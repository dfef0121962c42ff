"""What it saves that rows join as others end: 512 answers of very different lengths, 64 at once. For docs/benchmarks.md.

    python docs/scripts/continuous_batching.py

One thread, float32, Qwen2.5-VL's format with random weights: 4 layers of width 512, of which one token in 64 ends an answer.
"""

from __future__ import annotations

import time

import torch

from grpo_mm.pipelines.vlm.policy import VlmPolicyConfig
from grpo_mm.pipelines.vlm.sampling.generation import Draw, HfGenerator, Request
from grpo_mm.processes.rng import stream
from grpo_mm.types import Prompt

PROMPTS, GROUP, PLACES = 64, 8, 64


def main() -> None:
    torch.manual_seed(0)
    policy = VlmPolicyConfig(path="random:qwen2_5_vl/width512").load(torch.device("cpu"))
    stop = frozenset(range(0, len(policy.processor.tokenizer), 64)) - set(policy.loaded.forbidden)
    draw = Draw(256, stop, 1.0)
    contexts = [policy.encode(Prompt(str(i), "When does the red circle appear " * 8)) for i in range(PROMPTS)]
    rows: list[int] = []
    policy.model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda _, given, __: rows.append(given[0].shape[0]) if given[0].shape[1] == 1 else None
    )
    lengths = []
    print("| | forwards of one token a row | rows in them | processor seconds |")
    print("| --- | --- | --- | --- |")
    for name, together in (("one batch after the other", PLACES), ("rows join as others end", PROMPTS * GROUP)):
        requests = [Request(context, stream(0, context.prompt_id, row)) for context in contexts for row in range(GROUP)]
        rows.clear()
        start = time.process_time()
        parts = [
            HfGenerator(batch=PLACES).generate(policy.network, requests[first : first + together], draw)
            for first in range(0, len(requests), together)
        ]
        lengths.append(torch.cat([part.length_N for part in parts]))
        print(f"| {name} | {len(rows):,} | {sum(rows):,} | {time.process_time() - start:.1f} |", flush=True)
    assert torch.equal(*lengths)
    print(f"{len(lengths[0])} answers, {int(lengths[0].sum()):,} tokens, {lengths[0].float().mean():.0f} on average")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
