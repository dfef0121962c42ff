"""Every method by name: what it changes, where it comes from, and the preset that makes it.

A name that several papers use is refused with the candidates; the key, NAME_ARXIVID, always works.

A preset holds what the source prints of the group size, the updates of a rollout, the collector, the advantage stages and the
objective, and the weights of rewards that are part of the method. Never a learning rate or another setting of the optimiser:
these belong to the model and its adapter. Printed ones stand in the preset's comment, which also says what is ours.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_mm.errors import ConfigError
from grpo_mm.registry import entries

PRESETS = Path(__file__).parents[1] / "presets"

Grade = Literal["A", "B", "C", "D", "A, C", "A, D", "C, D", "D, C"]
"""Where our formulas come from. A: the authors' or a library's code; B: the text of the paper; C: third parties that quote it;
D: an abstract, uncertain. Two letters: some of it from each."""


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    name: str
    arxiv: str
    title: str
    grade: Grade
    changes: str
    """What it does differently from GRPO, in a few words."""
    tested: str
    """The test file with its worked numbers."""

    @property
    def key(self) -> str:
        return f"{self.name}_{self.arxiv}"

    @property
    def file(self) -> Path:
        return PRESETS / f"{self.key}.yaml"


METHODS: tuple[Method, ...] = (
    Method("grpo", "2402.03300", "Group-relative policy optimisation", "A", "nothing: the baseline", "tests/methods/test_methods_baselines.py"),
    Method("dr_grpo", "2503.20783", "GRPO done right", "A", "no scale; a constant in place of the length", "tests/methods/test_methods_baselines.py"),
    Method("rloo", "2402.14740", "REINFORCE leave-one-out", "A", "mean of the others; KL in the reward; product ratio", "tests/methods/test_methods_baselines.py"),
    Method("dapo", "2503.14476", "Decoupled clip and dynamic sampling", "A", "useful groups only; overlong penalty; clip-higher; token mean", "tests/methods/test_methods_baselines.py"),
    Method("bnpo", "2506.02864", "Beta-normalised policy optimisation", "A", "a Beta density at the success rate as the scale", "tests/methods/test_methods_baselines.py"),
    Method("mc_grpo", "2601.22582", "Median-centred GRPO", "A", "median and MAD; the median's row is not trained", "tests/methods/test_methods_baselines.py"),
    Method("ngrpo", "2509.18851", "Negative-enhanced GRPO", "A", "a virtual best sample in the statistics; clip .16/.24", "tests/methods/test_methods_baselines.py"),
    Method("stratified_grpo", "2510.06214", "Stratified GRPO", "C, D", "compared within strata of the group; blended with GRPO", "tests/methods/test_methods_baselines.py"),
    Method("spo", "2509.13232", "Single-stream policy optimisation", "A, C", "a tracker of each prompt as the baseline and for drawing prompts; batch scale", "tests/methods/test_methods_baselines.py"),
    Method("v0", "2602.03584", "V_0: samples by predicted success", "C", "how many samples each prompt gets", "tests/rollout/test_allocation.py"),
    Method("v05", "2603.10848", "V_0.5: value prior fused with the group mean", "C", "baseline shrunk towards a prior; a sample more where it pays", "tests/methods/test_methods_baselines.py"),
    Method("weighted_grpo", "2602.03452", "Weighted GRPO (Beyond Variance)", "D, C", "negative advantages weigh more", "tests/methods/test_methods_baselines.py"),
    Method("microcoder_grpo", "2603.07777", "MicroCoder-GRPO", "A", "silences some truncated rows; no KL; clip-higher", "tests/methods/test_methods_baselines.py"),
    Method("rank_grpo", "2510.20150", "Rank-GRPO: rank as the unit", "A", "advantage and ratio per list rank; DCG to go; list length", "tests/methods/test_methods_credit.py"),
    Method("gigpo", "2505.10978", "Group-in-group policy optimisation", "C", "episodes compared, and steps taken from the same state", "tests/methods/test_methods_credit.py"),
    Method("tempo", "2509.18314", "TEMPO: prefix tree (Prefix-to-Tree)", "D", "plus the change of the prefix value at each token", "tests/methods/test_methods_credit.py"),
    Method("m_grpo", "2511.13288", "M-GRPO: main and sub agents", "A, D", "groups per (prompt, agent); subs paid for the main score; copies weigh 1/copies", "tests/methods/test_methods_credit.py"),
    Method("graph_grpo", "2603.02701", "Graph-GRPO: edge-level advantages", "C", "a choice is worth the mean reward of the samples with it", "tests/methods/test_methods_credit.py"),
    Method("ospo", "2507.15351", "One-step policy optimisation", "A", "agents compared at one time step; fairness term", "tests/methods/test_methods_credit.py"),
    Method("s_grpo", "2505.07686", "S-GRPO: serial group, decaying reward", "C", "the n-th correct exit earns 2^(1-n); no scale", "tests/methods/test_methods_credit.py"),
    Method("gdpo", "2601.05242", "Decoupled normalisation of several rewards", "A", "each reward normalised in its group, summed, whitened over the batch", "tests/methods/test_methods_rewards.py"),
    Method("multi_label_grpo", "2503.21819", "Weighted labels of one reward model", "D", "weighted sum of labels before the group", "tests/methods/test_methods_rewards.py"),
    Method("crpo", "2512.00601", "Clinical-R1", "D, C", "10 · accuracy + faithfulness + comprehensiveness", "tests/methods/test_methods_rewards.py"),
    Method("p_grpo", "2508.05170", "Posterior-GRPO", "C, D", "process reward gated by the outcome", "tests/methods/test_methods_rewards.py"),
    Method("grpo_lambda", "2505.18086", "Length penalty switched by correctness", "C", "the most correct groups are asked to be short", "tests/methods/test_methods_rewards.py"),
    Method("unlikely", "2506.02355", "Rewarding the unlikely", "A", "likely correct samples earn less; two passes", "tests/methods/test_methods_rewards.py"),
    Method("xrpo", "2510.06672", "XRPO: novelty sharpening and allocation", "C", "a bonus for unlikely correct samples; samples by uncertainty", "tests/methods/test_methods_rewards.py"),
    Method("info_consistency_grpo", "2512.12858", "Information-consistent GRPO", "C", "entropy and its stability over variants of a prompt", "tests/methods/test_methods_rewards.py"),
    Method("ps_grpo", "2510.04392", "Paraphrased-set GRPO (Con-RAG)", "C", "similarity to the answers to other paraphrases", "tests/methods/test_methods_rewards.py"),
    Method("cobalt", "2602.03806", "Contextual bandit from offline trajectories", "A", "a ladder of pass rates that looks at the turn before", "tests/methods/test_methods_rewards.py"),
    Method("faithful_grpo", "2604.08476", "Faithful GRPO", "B", "constraints weighted by learnt multipliers; whitened", "tests/methods/test_methods_rewards.py"),
    Method("gspo", "2507.18071", "Group sequence policy optimisation", "A", "one ratio and clip per row, the geometric mean", "tests/methods/test_methods_objectives.py"),
    Method("gspo_token", "2507.18071", "GSPO-token", "A", "the row's ratio in value, the action's in gradient", "tests/methods/test_methods_objectives.py"),
    Method("cispo", "2506.13585", "CISPO (MiniMax-M1)", "C", "REINFORCE with a bounded ratio as weight; no clip", "tests/methods/test_methods_objectives.py"),
    Method("sapo", "2511.20347", "Soft adaptive policy optimisation", "C", "a sigmoid gate in place of the clip", "tests/methods/test_methods_objectives.py"),
    Method("gmpo", "2507.20673", "Geometric-mean policy optimisation", "C", "geometric mean of the row's clipped ratios", "tests/methods/test_methods_objectives.py"),
    Method("kl_cov", "2505.22617", "KL-Cov (entropy mechanism)", "C", "KL on the actions that cost most entropy; no clip", "tests/methods/test_methods_objectives.py"),
    Method("tis", "1802.01561", "Truncated importance sampling", "C", "weights for a sampler that differs from the trainer", "tests/methods/test_methods_objectives.py"),
    Method("disco", "2505.12366", "Discriminative constrained optimisation", "A", "correct against wrong rows of a prompt; hinge KL", "tests/methods/test_methods_objectives.py"),
    Method("drpo", "2510.04474", "Decoupled reward policy optimisation", "A", "DisCO; short correct rows weigh more", "tests/methods/test_methods_objectives.py"),
    Method("grao", "2508.07750", "Group relative alignment optimisation", "B", "log-likelihoods of samples and a demonstration", "tests/methods/test_methods_objectives.py"),
    Method("passk", "2508.10751", "Pass@k training", "C", "worth by the best of k: what a sample adds to sets of k", "tests/advantages/test_pass_at_k.py"),
    Method("gpg", "2504.02546", "Group policy gradient", "C", "no ratio, no KL; groups that teach make up for those that do not", "tests/advantages/test_pass_at_k.py"),
    Method("high_entropy", "2506.01939", "Beyond the 80/20 rule", "C", "only the fifth of the tokens with the most entropy", "tests/objectives/test_objectives.py"),
    Method("qae", "2509.22611", "Quantile advantage estimation", "D", "a quantile of the group as the baseline", "tests/advantages/test_quantile_norm.py"),
)  # fmt: skip

OTHERS: dict[str, tuple[str, ...]] = {
    "grpo_lambda": ("2510.00194 (eligibility traces)", "2510.06870 (λ-GRPO)"),
    "ospo": ("Shapley credit of segments",),
    "s_grpo": ("2504.20834 (token-efficient)",),
    "rank_grpo": ("RankGRPO (samples ranked by a reward model)",),
    "graph_grpo": ("graph flow models",),
    "bnpo": ("TRL's loss type bnpo, a masked mean over the local batch",),
}
"""Names that other papers use as well: what is not here under them."""


def find(name: str) -> Method:
    """The method of a key, or of a name that only one paper uses; raises ConfigError with the candidates otherwise.

    Names are read without case, hyphens and dots: Dr.GRPO is dr_grpo, and DrGRPO too.
    """
    for method in METHODS:
        if name == method.key:
            return method
    same = [method for method in METHODS if _plain(name) in (_plain(method.name), _plain(method.key))]
    if len(same) == 1 and (same[0].name not in OTHERS or _plain(name) == _plain(same[0].key)):
        return same[0]
    if same:
        here = ", ".join(f"{method.key} ({method.title})" for method in same)
        others = "; ".join(other for key in sorted({m.name for m in same}) for other in OTHERS.get(key, ()))
        raise ConfigError(
            f"method {name!r} is the name of several papers. Here: {here}. Not here: {others}. Write method: {same[0].key}."
        )
    for config in entries("preset"):
        if _plain(name) == _plain(config.kind):
            raise ConfigError(
                f"{name!r} is a config, not a method that a config names: start from {config.config} (or inherit it)."
            )
    near = difflib.get_close_matches(name, [n for m in METHODS for n in (m.name, m.key)], n=1)
    raise ConfigError(
        f"unknown method {name!r}." + (f" Did you mean {near[0]!r}?" if near else "") + " `grpo-mm methods` lists them."
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-]", "", name.lower())


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def preset(name: str) -> dict[str, Any]:
    """The settings of a method: the keys of a config that it fills in."""
    return yaml.safe_load(_text(find(name).file))
