"""One step of Flow-GRPO here and in its authors' loop: the same checkpoint, rows and network calls, in turns in one process.

    python docs/scripts/beside_flow_grpo.py CHECKOUT [tiny | width384 [STEPS]]

CHECKOUT: a clone of https://github.com/yifan123/flow_grpo. Its sampler (`pipeline_with_logprob`) and its `compute_log_prob` run as
they are; the loop around them is written here as `scripts/train_sd3.py` has it, without accelerate, trackers and prompts' files.
Printed are medians of processor seconds over STEPS steps (default 5) after one that warms up, one thread.
"""

from __future__ import annotations

import ast
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from grpo_mm.config.run_config import read
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.processes import clock
from grpo_mm.processes.distributed import Processes
from grpo_mm.training.learner import Learner

STEPS_T, GROUP, PROMPTS, GUIDANCE, NOISE, BETA, CLIP = 10, 8, 1, 4.5, 0.7, 0.04, 1e-4
RANK, ALPHA, LR = 32, 64, 3e-4
TRAINED = STEPS_T - 1
TARGETS = ["attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"]  # fmt: skip


MODELS = {"tiny": ("zoo:text_to_image", 24), "width384": ("random:sd3_width384", 64)}
"""A checkpoint, and pixels of a side."""


def main(checkout: str, model: str = "tiny", steps: str = "5") -> None:
    torch.set_num_threads(1)
    path, side = MODELS[model]
    variants: dict[str, Callable[[int], dict[str, int]]] = {
        "their loop": theirs(Path(checkout), path, side),
        "here, the whole gradient": ours(path, side, detach=False),
        "here, their gradient": ours(path, side, detach=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    calls = {}
    for step in range(int(steps) + 1):
        for name, run in variants.items():
            began = time.process_time()
            calls[name] = run(step)
            if step:
                seconds[name].append(time.process_time() - began)
    first = statistics.median(next(iter(seconds.values())))
    print(
        f"| {model}: a step of {PROMPTS} prompts × {GROUP} rows, {STEPS_T} steps | processor seconds | of theirs | rows through the network |"
    )
    print("| --- | --- | --- | --- |")
    for name, found in seconds.items():
        told = ", ".join(f"{kind} {number}" for kind, number in sorted(calls[name].items()) if number)
        print(f"| {name} | {statistics.median(found):.2f} | {statistics.median(found) / first:.2f} | {told} |")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def ours(path: str, side: int, *, detach: bool) -> Callable[[int], dict[str, int]]:
    """A training step of this package."""
    config = read({
        "name": "beside", "steps": 1000, "prompts_per_step": PROMPTS, "group_size": GROUP,
        "policy": {
            "kind": "flow", "model": {"kind": "sd3", "path": path}, "lora": {"rank": RANK, "alpha": ALPHA},
            "guidance": GUIDANCE, "height": side, "width": side, "text_length": 16, "micro_batch": GROUP,
            "detach_unconditional": detach,
        },
        "engine": {
            "kind": "flow", "steps": STEPS_T, "kernel": "flow_sde", "rollout_batch": GROUP,
            "schedule": {"kind": "diffusers_sd3", "shift": 3.0}, "noise": {"kind": "all", "level": NOISE, "last": True},
        },
        "prompts": {"shapes": {"use": {"kind": "shape_world", "split": "train"}}},
        "rewards": {"light": {"use": {"kind": "function", "path": "beside_flow_grpo:light"}}},
        "advantage": [{"kind": "weighted_sum"}, {"kind": "group_norm", "scale_over": "batch"}, {"kind": "clamp", "limit": 5}],
        "objective": [
            {"kind": "clipped_ratio", "clip_low": CLIP, "clip_high": CLIP},
            {"kind": "kl", "form": "gaussian_no_dt", "weight": BETA},
        ],
        "optim": {"lr": LR}, "samples_every": 0, "threads": 1, "device": "cpu", "default_watch": False,
    }, [])  # fmt: skip
    config.check()
    with TemporaryDirectory() as folder:
        learner = Learner(config, Processes(device="cpu"), samples=Path(folder))

    def run(step: int) -> dict[str, int]:
        times = clock.use(clock.Clock())
        learner.step(step)
        return {name: number for name, number in times.take()[1].items() if name.endswith("_calls")}

    return run


def light(images: list) -> list[float]:
    """How light a picture is."""
    return [float(np.asarray(image).mean()) / 255 for image in images]


def theirs(checkout: Path, path: str, side: int) -> Callable[[int], dict[str, int]]:
    """A training step with their sampler and their log-probabilities."""
    from peft import LoraConfig, get_peft_model

    sys.path.insert(0, str(checkout))
    from flow_grpo.diffusers_patch.sd3_pipeline_with_logprob import pipeline_with_logprob

    torch.manual_seed(0)
    pipe = Sd3(path).load(torch.float32, full=False)
    pipe.set_progress_bar_config(disable=True)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=TARGETS)
    pipe.transformer = transformer = get_peft_model(pipe.transformer, lora)
    params = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=1e-4, eps=1e-8)
    compute_log_prob = _function(checkout / "scripts/train_sd3.py", "compute_log_prob")
    settings = SimpleNamespace(
        train=SimpleNamespace(cfg=True), sample=SimpleNamespace(guidance_scale=GUIDANCE, noise_level=NOISE)
    )
    texts, counts = ["a red circle", "a blue square"][:PROMPTS], {"network": 0}
    transformer.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: counts.__setitem__("network", counts["network"] + len(kwargs["hidden_states"])),
        with_kwargs=True,
    )

    def run(step: int) -> dict[str, int]:
        counts["network"] = 0
        with torch.no_grad():
            embeds, none, pooled, pooled_none = pipe.encode_prompt(
                prompt=texts, prompt_2=None, prompt_3=None, max_sequence_length=16
            )
        samples = []
        for p in range(PROMPTS):
            own = [t[p : p + 1].repeat(GROUP, *[1] * (t.dim() - 1)) for t in (embeds, none, pooled, pooled_none)]
            images, latents, logprobs = pipeline_with_logprob(
                pipe, prompt_embeds=own[0], negative_prompt_embeds=own[1], pooled_prompt_embeds=own[2],
                negative_pooled_prompt_embeds=own[3], num_inference_steps=STEPS_T, guidance_scale=GUIDANCE, output_type="pt",
                height=side, width=side, noise_level=NOISE,
            )  # fmt: skip
            steps = torch.stack(latents, 1)
            reward = (images.float() * 255).round().mean((1, 2, 3)) / 255
            samples.append({
                "latents": steps[:, :-1], "next_latents": steps[:, 1:], "log_probs": torch.stack(logprobs, 1),
                "timesteps": pipe.scheduler.timesteps.repeat(GROUP, 1), "embeds": torch.cat([own[1], own[0]]),
                "pooled": torch.cat([own[3], own[2]]), "reward": reward,
            })  # fmt: skip
        std = torch.cat([s["reward"] for s in samples]).std() + 1e-4
        for sample in samples:
            advantage = ((sample["reward"] - sample["reward"].mean()) / std).clamp(-5, 5)
            for j in range(TRAINED):
                _, logprob, mean, deviation = compute_log_prob(
                    transformer, pipe, sample, j, sample["embeds"], sample["pooled"], settings
                )
                with torch.no_grad(), transformer.disable_adapter():
                    _, _, mean_ref, _ = compute_log_prob(
                        transformer, pipe, sample, j, sample["embeds"], sample["pooled"], settings
                    )
                ratio = torch.exp(logprob - sample["log_probs"][:, j])
                clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
                loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
                kl = ((mean - mean_ref) ** 2).mean(dim=(1, 2, 3), keepdim=True) / (2 * deviation**2)
                ((loss + BETA * kl.mean()) / (TRAINED * PROMPTS)).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return dict(counts)

    return run


def _function(file: Path, name: str) -> Any:
    """One function of a script, without running the script."""
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    from flow_grpo.diffusers_patch.sd3_sde_with_logprob import sde_step_with_logprob

    scope = {"torch": torch, "sde_step_with_logprob": sde_step_with_logprob}
    exec(compile(tree, str(file), "exec"), scope)  # the checkout that was named on the command line
    return scope[name]


if __name__ == "__main__":
    main(*sys.argv[1:4])
