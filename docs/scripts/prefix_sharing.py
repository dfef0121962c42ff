"""What a shared prompt saves: measured beside the formula's bound, and against another trainer. For docs/benchmarks.md.

    python docs/scripts/prefix_sharing.py rows [number …]   # forward and backward of the training side, both forms in turns
    python docs/scripts/prefix_sharing.py trl               # whole steps of TRL's GRPOTrainer and of ours in turns; needs trl

One thread, float32, Qwen2.5-VL's format with random weights: 4 layers of width 512.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grpo_mm.config.run_config import read
from grpo_mm.pipelines.vlm.policy import VlmPolicy, VlmPolicyConfig
from grpo_mm.pipelines.vlm.prompt_sharing import prefix_cost
from grpo_mm.pipelines.vlm.prompting.contexts import Context
from grpo_mm.pipelines.vlm.prompting.record import TextRecord
from grpo_mm.pipelines.zoo.random_clips import RandomPictures, by_chance
from grpo_mm.processes.distributed import Processes
from grpo_mm.processes.rng import stream
from grpo_mm.tools import bench
from grpo_mm.training.learner import Learner

MODEL = "random:qwen2_5_vl/width512"
ROWS = ((8, 1024, 32), (8, 512, 128), (4, 2048, 512), (16, 512, 16), (8, 128, 128), (8, 32, 256))
"""Answers, prompt and answer tokens: an eighth of the lengths of the paper's table, whose fractions depend on their ratio."""
REPEATS = 3
CONFIG = Path(__file__).parents[2] / "configs/bench/prefix_cpu.yaml"


def rows(numbers: list[int]) -> None:
    print(
        "| answers | prompt | answer | tokens, bound | pairs, bound | both, weighted | measured | seconds | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    forms = {sharing: _policy(sharing) for sharing in ("on", "off")}
    for group, prompt, answer in (ROWS[number] for number in numbers):
        record = _record(group, prompt, answer)
        found: dict[str, list[tuple[float, float]]] = {"on": [], "off": []}
        for _ in range(REPEATS):
            for sharing, policy in forms.items():
                found[sharing].append(_measured(partial(_forward_backward, policy, record)))
        once, again = (tuple(statistics.median(v) for v in zip(*found[sharing])) for sharing in ("on", "off"))
        costs = [form(prompt, [answer] * group) for form in (prefix_cost.shared, prefix_cost.repeated)]
        token, pair = prefix_cost.layer_costs(forms["on"].model.model.language_model)
        weighted = [cost.weighted(token=token, pair=pair) for cost in costs]
        print(
            f"| {group} | {prompt:,} | {answer:,} | {costs[0].pointwise / costs[1].pointwise:.3f} "
            f"| {costs[0].attention / costs[1].attention:.3f} | {weighted[0] / weighted[1]:.3f} | {once[0] / again[0]:.3f} "
            f"| {once[0]:.2f} : {again[0]:.2f} | {once[1]:,.0f} : {again[1]:,.0f} MiB |",
            flush=True,
        )


def _policy(sharing: str) -> VlmPolicy:
    torch.manual_seed(0)
    return VlmPolicyConfig(path=MODEL, prefix_sharing=sharing, micro_batch=99).load(torch.device("cpu"))


def _record(group: int, prompt: int, answer: int) -> TextRecord:
    ids = torch.randint(10, 150, (prompt + group * answer,), generator=stream(0, "ids"))
    context = Context("prompt", ids[:prompt], torch.arange(prompt).expand(3, prompt))
    return TextRecord(
        contexts=(context,),
        context_N=torch.zeros(group, dtype=torch.int64),
        token_NA=ids[prompt:].view(group, answer),
        length_N=torch.full((group,), answer),
    )


def _forward_backward(policy: VlmPolicy, record: TextRecord) -> None:
    parts = policy.replay.forwards(record, torch.arange(len(record.length_N)))
    for values, _ in policy.replay.values(record, parts, entropy=False, grad=True, charge="train_network"):
        values.sum().backward()
    for parameter in policy.trainable.values():
        parameter.grad = None


def _measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and MiB above what was resident before. Processor time of one thread does not mind other work."""
    device = torch.device("cpu")
    resident, start = bench._start_peak_mib(device), time.process_time()
    work()
    return time.process_time() - start, bench._peak_mib(device) - resident


def trl(steps: int = 5) -> None:
    """A step: sampling, the reference, and one update. Both with KL to a reference, without a checkpoint between."""
    with tempfile.TemporaryDirectory() as folder:
        config = read(CONFIG, [])
        config.check()
        learner = Learner(config, Processes(device="cpu"), samples=Path(folder))
        learner.policy.save(Path(folder) / "model")
        ours: list[tuple[float, float]] = []
        found = _trl_steps(Path(folder), learner, steps=steps, ours=ours)
    for name, values in (("grpo_mm", ours), ("trl", found)):
        seconds, peak = (statistics.median(value) for value in zip(*values[1:]))
        print(f"{name:8} {seconds:7.2f} s a step, {peak:6,.0f} MiB above resident, median of {len(values) - 1}")
    ratio = [statistics.median(a[which] / b[which] for a, b in zip(ours[1:], found[1:])) for which in (0, 1)]
    print(f"ours over TRL: time {ratio[0]:.3f}, memory {ratio[1]:.3f}")


def _trl_steps(
    folder: Path, learner: Learner, *, steps: int, ours: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Seconds and memory of TRL's steps; before each of them a step of ours is measured."""
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    prompts = RandomPictures().load()
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": p.text}],
          "image": Image.fromarray(p.media[0].permute(1, 2, 0).numpy())} for p in prompts]
    )  # fmt: skip
    found: list[tuple[float, float]] = []

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            ours.append(_measured(lambda: learner.step(len(ours))))
            self.resident, self.start = bench._start_peak_mib(torch.device("cpu")), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = time.process_time() - self.start
            found.append((seconds, bench._peak_mib(torch.device("cpu")) - self.resident))
            print(
                f"ours {ours[-1][0]:.2f} s, {ours[-1][1]:,.0f} MiB; TRL {found[-1][0]:.2f} s, {found[-1][1]:,.0f} MiB",
                flush=True,
            )

    settings = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=8, num_generations=8, max_completion_length=32,
        max_steps=steps + 1, learning_rate=1e-6, beta=0.04, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to=[], save_strategy="no", logging_steps=1000, temperature=1.0, model_init_kwargs={"dtype": "float32"},
        generation_kwargs={"min_new_tokens": 32, "suppress_tokens": list(learner.policy.loaded.forbidden)},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(folder / "model"), args=settings, train_dataset=data, callbacks=[Turns()],
        processing_class=AutoProcessor.from_pretrained(folder / "model"),
        reward_funcs=lambda completions, **_: by_chance([c[0]["content"] for c in completions], [], None),
    )  # fmt: skip
    trainer.model.model.visual.requires_grad_(False)  # as ours: the tower is frozen
    trainer.train()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["trl"]:
        trl()
    elif sys.argv[1:2] == ["rows"]:
        rows([int(number) for number in sys.argv[2:]] or list(range(len(ROWS))))
    else:
        sys.exit(__doc__)
