"""Win rate: the share of a picture's comparisons with the others of its set that a judge decides for it (Pref-GRPO)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.identity import FREE
from grpo_mm.outside import finite_number, shown
from grpo_mm.processes import rng
from grpo_mm.processes.clock import count
from grpo_mm.registry import Role
from grpo_mm.rewards.judges.comparing import Pair, Verdict
from grpo_mm.rewards.judges.pairing import all_pairs, bradley_terry, expected_win_rates, next_pairs, opening_pairs
from grpo_mm.rewards.judges.vlm import JUDGE_SECONDS
from grpo_mm.rewards.shared.clips import ready_clips
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rollout.outputs.takes import takes_of
from grpo_mm.types import Clips, Prompt

logger = logging.getLogger(__name__)

OVERALL = "overall"
PARTS = ("score", "failed", "ties", "comparisons", "swapped_disagree")


def win_rates(verdict_GG: Tensor, *, decimals: int | None = 3) -> Tensor:
    """Wins over comparisons, when each of a set's G things was compared with every other one.

    Args:
        verdict_GG: [G, G] verdict_GG[i, j] = 1 if i won against j, 0 if j did, 0.5 for a tie, NaN if the comparison
            failed; so verdict_GG[j, i] = 1 - verdict_GG[i, j]. The diagonal is not read.
        decimals: rounds the rates as the released code does, half to even; None does not.

    Returns:
        [G] float64. A failed comparison counts 1/2 to both; NaN for a thing of which all comparisons failed, and for a
        single one. Before rounding the rates sum to G / 2 if none is NaN, so their mean is 1/2.

    Raises:
        ValueError: the two halves of the table contradict each other.

    Source: Pref-GRPO, arXiv:2508.20751, section 3 (the paper sums over ordered pairs; the released code, as we, judges
    each unordered pair once, which gives the same rate if the judge does not mind the order). Deviates: a thing that
    was never compared successfully has no win rate; the released code gives it 1/2.
    """
    others_GG = ~torch.eye(len(verdict_GG), dtype=torch.bool)
    both_GG = verdict_GG + verdict_GG.T
    if not ((both_GG - 1).abs() < 1e-6)[others_GG & ~both_GG.isnan()].all():
        raise ValueError("verdict_GG[i, j] + verdict_GG[j, i] must be 1: what one wins the other loses.")
    failed_GG = both_GG.isnan() & others_GG
    won_GG = torch.where(failed_GG, 0.5, verdict_GG.double()).masked_fill(~others_GG, 0.0)
    rate_G = won_GG.sum(1) / (len(verdict_GG) - 1) if len(verdict_GG) > 1 else won_GG.sum(1)
    return _rounded(torch.where((others_GG & ~failed_GG).any(1), rate_G, torch.nan), decimals)


@dataclass
class WinRate:
    """score = `win_rates` of the pictures of a comparison set, by a judge that sees two at a time.

    The defaults are the published form. With `categories` it is the flex variant: overall_weight × overall win rate +
    (1 - overall_weight) × weighted mean of the win rates in the categories.

    Which picture is shown first follows the order of the rows. Two identical pictures tie without being judged. What is
    random (the first round under `max_pairs`) is keyed by prompt and pictures, so the same set gets the same comparisons
    on any rank and in any batch.

    Source: Pref-GRPO, arXiv:2508.20751; fastvideo/rewards/unifiedreward_{think,flex}.py of CodeGoat24/Pref-GRPO.
    """

    timeout_seconds: ClassVar[float] = JUDGE_SECONDS

    scope: ClassVar[str] = "set"
    """Scores a set as a whole: called with group_M, once per final set, never on single rows."""

    judge: Annotated[Any, Role("judge")] | None = None
    """What decides between two pictures; it has to be given."""
    both_orders: bool = False
    """Shows each pair twice, exchanged, and takes the mean: a judge that likes the first place cancels out, at twice the
    calls. If one of the two fails, the other one holds."""
    max_pairs: int | None = None
    """At most so many pairs of a set of G are compared; None, or G (G - 1) / 2 and more, compares all. With fewer, the
    pairs are chosen round by round (see `pairing`) and the rate is the one expected from a Bradley-Terry fit, against
    all others. G or more is sensible; below G / 2 somebody would stay alone, which is refused."""
    categories: dict[str, float] = field(default_factory=dict)
    """Category -> weight, of those that the judge decides; a verdict that lacks one counts 1/2. The flex variant has
    {alignment: 1, quality: 0.7, aesthetics: 0.7}."""
    overall_weight: float = 0.3
    """Has no effect without categories."""
    decimals: int | None = 3
    """Win rates are rounded as in the released code; null does not."""
    cache_size: int = field(default=100_000, metadata=FREE)
    """Verdicts that are kept, to be used again for the same prompt and pictures; failures are not."""

    def __post_init__(self) -> None:
        if self.judge is None:
            raise ConfigError(
                "a pairwise reward needs a judge: add judge: {kind: server, base_url: ..., model: ...}, "
                "judge: {kind: transformers, model: ...} or judge: {kind: pointwise, reward: {kind: ...}} to win_rate."
            )
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ConfigError(f"win_rate: max_pairs = {self.max_pairs}, wanted 1 or more, or null for all pairs.")
        if not 0 <= self.overall_weight <= 1 or any(weight < 0 for weight in self.categories.values()):
            raise ConfigError(
                f"win_rate: overall_weight = {self.overall_weight}, wanted 0 to 1, and category weights "
                f"{self.categories}, wanted 0 or more."
            )
        if self.categories and not sum(self.categories.values()):
            raise ConfigError(f"win_rate: all categories {list(self.categories)} have weight 0; give one of them more.")
        known = getattr(self.judge, "categories", None)
        surplus = [
            name for name in self.categories if name in (OVERALL, *PARTS) or known is not None and name not in known
        ]
        if surplus:
            raise ConfigError(
                f"win_rate: the judge decides no category {', '.join(map(repr, surplus))}; "
                + (f"it decides {', '.join(known)}." if known else "does it have to be asked with form: flex?")
            )
        self._verdicts: dict[bytes, Verdict] = {}
        self._warned = False

    def check(self) -> None:
        """Raises ConfigError if the judge lacks a file, a package or an address."""
        judge: Any = self.judge
        if hasattr(judge, "check"):
            judge.check()

    @property
    def needs_device(self) -> bool:
        return bool(getattr(self.judge, "needs_device", hasattr(self.judge, "to")))

    def to(self, device: torch.device | str) -> WinRate:
        judge: Any = self.judge
        if hasattr(judge, "to"):
            judge.to(device)
        return self

    def planned_calls(self, size: int) -> int:
        """How often the judge is asked about a set of `size` pictures, if none of it is known."""
        total = size * (size - 1) // 2
        if self.max_pairs is not None and self.max_pairs < (size + 1) // 2 and size > 1:
            raise ConfigError(
                f"win_rate: max_pairs = {self.max_pairs} leaves some of {size} pictures uncompared; wanted {(size + 1) // 2} or more."
            )
        return min(total, self.max_pairs or total) * (2 if self.both_orders else 1)

    @property
    def takes(self) -> tuple[str, ...]:
        """What its judge compares: pictures, clips, or either."""
        form, inner = getattr(self.judge, "form", None), getattr(self.judge, "reward", None)
        if form is not None:
            return ("clips",) if form == "clip" else ("pictures",)
        return ("pictures", "clips") if inner is None else tuple(takes_of(inner))

    def __call__(self, items: Any, prompts: Sequence[Prompt], group_M: Tensor) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] (and what else `takes_pictures` does) or `Clips`, M prompts and [M] comparison sets -> score and parts, [M].

        Parts: failed and ties (shares of a picture's comparisons), comparisons (how many there were), swapped_disagree
        (with both_orders: the share of comparisons whose two verdicts differ), and with categories the win rate
        overall and in each.
        """
        return (self._of_clips if isinstance(items, Clips) else self._of_pictures)(items, prompts, group_M)

    @takes_pictures
    def _of_pictures(self, items: Tensor, prompts: Sequence[Prompt], group_M: Tensor) -> dict[str, Tensor]:
        pictures = list(items.cpu())
        return self._found(pictures, [_digest(image) for image in pictures], prompts, group_M)

    def _of_clips(self, items: Clips, prompts: Sequence[Prompt], group_M: Tensor) -> dict[str, Tensor]:
        clips = ready_clips(items, who="win_rate")
        sound = [i for i, clip in enumerate(clips) if clip is not None]
        digests = [_hash(_digest(clips[i].frames_FCHW.cpu()), str(clips[i].fps).encode()) for i in sound]
        found = self._found([clips[i] for i in sound], digests, [prompts[i] for i in sound], group_M[sound])
        whole = {name: torch.full((len(clips),), torch.nan) for name in found}
        for name, value in found.items():
            whole[name][sound] = value
        return whole

    def _found(
        self, pictures: Sequence[Any], digests: Sequence[bytes], prompts: Sequence[Prompt], group_M: Tensor
    ) -> dict[str, Tensor]:
        sets = []
        group_M = group_M.cpu()
        for group in group_M.unique().tolist():
            rows = (group_M == group).nonzero()[:, 0].tolist()
            prompt = prompts[rows[0]]
            if any(prompts[row].id != prompt.id for row in rows):
                raise UserError(f"win_rate: set {group} mixes prompts; only pictures for one prompt can be compared.")
            sets.append(_Set(rows, prompt, [pictures[row] for row in rows], [digests[row] for row in rows]))
        self._compare(sets)
        columns = [(one.rows, self._scores(one)) for one in sets]
        names = dict.fromkeys(name for _, scores in columns for name in scores)
        result = {name: torch.full((len(prompts),), torch.nan) for name in names}
        for rows, scores in columns:
            for name, value_G in scores.items():
                result[name][rows] = value_G.float()
        return result if result else {"score": torch.zeros(0)}

    def _compare(self, sets: Sequence[_Set]) -> None:
        """Fills the tables of all sets; the judge gets a round of all of them at once."""
        while True:
            rounds = [(one, self._pairs(one)) for one in sets]
            shown = [(one, *order) for one, pairs in rounds for pair in pairs for order in self._orders(pair)]
            if not shown:
                return
            verdicts = self._judge([one.pair(i, j) for one, i, j in shown], [one.key(i, j) for one, i, j in shown])
            for (one, i, j), verdict in zip(shown, verdicts):
                one.note(i, j, verdict, (OVERALL, *self.categories))

    def _pairs(self, one: _Set) -> list[tuple[int, int]]:
        size, asked = len(one.rows), int(one.asked_GG.sum()) // 2
        total = size * (size - 1) // 2
        if self.max_pairs is None or self.max_pairs >= total:
            return all_pairs(size) if not asked else []
        if self.max_pairs < (size + 1) // 2:
            raise UserError(
                f"win_rate: max_pairs = {self.max_pairs} leaves some of {size} pictures without a comparison; "
                f"{(size + 1) // 2} show each once, {size} or more tell something. All pairs are {total}."
            )
        # In an order that the pictures give, so that the order of the rows does not choose the pairs.
        order = one.content_order()
        if not asked:
            chosen = opening_pairs(size, self.max_pairs, rng.stream(0, "win_rate", one.prompt.id, *sorted(one.digests)))
        else:
            win_GG = one.win_GG(OVERALL)[order][:, order]
            chosen = next_pairs(win_GG, one.asked_GG[order][:, order], self.max_pairs - asked)
        return [(min(order[i], order[j]), max(order[i], order[j])) for i, j in chosen]

    def _orders(self, pair: tuple[int, int]) -> list[tuple[int, int]]:
        return [pair, (pair[1], pair[0])] if self.both_orders else [pair]

    def _judge(self, pairs: Sequence[Pair], keys: Sequence[bytes | None]) -> list[Verdict | None]:
        """Verdicts, from the cache where there is one; the same comparison is asked once."""
        known = {key: self._verdicts[key] for key in keys if key in self._verdicts}
        ask = {key: pair for key, pair in zip(keys, pairs) if key is not None and key not in known}
        if ask:
            judge: Any = self.judge
            answers = judge(list(ask.values()))
            if not isinstance(answers, (list, tuple)):
                raise UserError(f"the judge gave {shown(answers, 80)}; wanted a list of {len(ask)} verdicts.")
            if len(answers) != len(ask):
                raise UserError(f"the judge gave {len(answers)} verdicts on {len(ask)} pairs; wanted one for each.")
            count("judge_calls", len(ask))
            given = {key: answer for key, answer in zip(ask, answers) if answer}
            bad = {key: why for key, answer in given.items() if (why := _what_is_wrong(answer))}
            if bad:
                self._tell_or_raise(next(iter(bad.values())), all_are=len(bad) == len(given))
            for key in (key for key in given if key not in bad):
                known[key] = self._verdicts[key] = {str(name): float(v) for name, v in given[key].items()}
            while len(self._verdicts) > self.cache_size:
                self._verdicts.pop(next(iter(self._verdicts)), None)
        return [_SAME if key is None else known.get(key) for key in keys]

    def _tell_or_raise(self, why: str, *, all_are: bool) -> None:
        """One bad verdict is a failed comparison and must not cost the others theirs; a judge that gives no good one is no judge."""
        if all_are:
            raise UserError(why)
        if not self._warned:
            self._warned = True
            logger.warning("%s; such comparisons fail", why)

    def _scores(self, one: _Set) -> dict[str, Tensor]:
        rates = {name: self._rates(one, name) for name in (OVERALL, *self.categories)}
        score_G = _rounded(rates[OVERALL], self.decimals)
        if self.categories:
            total = sum(self.categories.values())
            mean_G = torch.stack([rates[name] * (weight / total) for name, weight in self.categories.items()]).sum(0)
            score_G = self.overall_weight * score_G + (1 - self.overall_weight) * _rounded(mean_G, self.decimals)
        return {"score": score_G, **one.statistics(swapped=self.both_orders), **(rates if self.categories else {})}

    def _rates(self, one: _Set, name: str) -> Tensor:
        verdict_GG = one.verdict_GG(name)
        size = len(one.rows)
        if int(one.asked_GG.sum()) == size * (size - 1):
            return win_rates(verdict_GG, decimals=None)
        # A failed comparison tells the fit nothing; half a win each would pull the two together.
        rate_G = expected_win_rates(bradley_terry(one.win_GG(name)))
        return torch.where(verdict_GG.isfinite().any(1), rate_G, torch.nan)


_SAME: Verdict = {}
"""The verdict on two identical pictures: every name is missing, so everything is a tie."""


class _Set:
    """The pictures of one comparison set (G of them) and what is known about them."""

    def __init__(self, rows: list[int], prompt: Prompt, pictures: list[Any], digests: list[bytes]) -> None:
        self.rows, self.prompt, self.pictures, self.digests = rows, prompt, pictures, digests
        self.asked_GG = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        self._shown: dict[str, Tensor] = {}
        """[G, G] by name: the verdict when the row's picture was shown first and the column's second."""

    def pair(self, i: int, j: int) -> Pair:
        return Pair(self.pictures[i], self.pictures[j], self.prompt)

    def key(self, i: int, j: int) -> bytes | None:
        """Names the comparison by its content; None for identical pictures."""
        if self.digests[i] == self.digests[j]:
            return None
        names = "\x1f".join((self.prompt.id, self.prompt.text)).encode()
        return _hash(names, self.digests[i], self.digests[j])

    def content_order(self) -> list[int]:
        return sorted(range(len(self.rows)), key=lambda g: self.digests[g])

    def note(self, i: int, j: int, verdict: Verdict | None, names: Iterable[str]) -> None:
        self.asked_GG[i, j] = self.asked_GG[j, i] = True
        for name in names:
            empty_GG = torch.full(self.asked_GG.shape, torch.nan, dtype=torch.float64)
            shown_GG = self._shown.setdefault(name, empty_GG)
            shown_GG[i, j] = torch.nan if verdict is None else verdict.get(name, 0.5)

    def verdict_GG(self, name: str) -> Tensor:
        """Mean over the orders in which a pair was judged; NaN where it failed or was not asked."""
        shown_GG = self._shown.get(name, torch.full(self.asked_GG.shape, torch.nan, dtype=torch.float64))
        return torch.stack([shown_GG, 1 - shown_GG.T]).nanmean(0)

    def win_GG(self, name: str) -> Tensor:
        return self.verdict_GG(name).nan_to_num(0.0)

    def statistics(self, *, swapped: bool) -> dict[str, Tensor]:
        """By picture, shares of its comparisons; NaN if it had none."""
        verdict_GG, asked_G = self.verdict_GG(OVERALL), self.asked_GG.sum(1)
        found = {
            "failed": (self.asked_GG & verdict_GG.isnan()).sum(1) / asked_G,
            "ties": (verdict_GG == 0.5).sum(1) / asked_G,
            "comparisons": asked_G,
        }
        if swapped:
            shown_GG = self._shown.get(OVERALL, torch.full(self.asked_GG.shape, torch.nan, dtype=torch.float64))
            twice_GG = (shown_GG + shown_GG.T).isfinite()
            found["swapped_disagree"] = (twice_GG & (shown_GG != 1 - shown_GG.T)).sum(1) / twice_GG.sum(1)
        return found


def _what_is_wrong(verdict: Any) -> str:
    if not isinstance(verdict, Mapping):
        return f"the judge's verdict is {shown(verdict, 80)}; wanted a dict such as {{'overall': 1.0}}."
    for name, value in verdict.items():
        if not 0 <= (-1 if (number := finite_number(value)) is None else number) <= 1 and type(value) is not bool:
            return f"the judge's verdict has {name} = {shown(value, 80)}; wanted 1 (first), 0 (second) or 0.5 (tie)."
    return ""


def _digest(image: Tensor) -> bytes:
    return _hash(str((image.dtype, *image.shape)).encode(), image.contiguous().numpy().tobytes())


def _hash(*parts: bytes) -> bytes:
    """Parts of any length, told apart."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


def _rounded(value_G: Tensor, decimals: int | None) -> Tensor:
    if decimals is None:
        return value_G
    return torch.tensor([round(value, decimals) for value in value_G.tolist()], dtype=torch.float64)
