"""What `grpo-mm explain` and docs/reference.md say of keys that speak for themselves to whoever knows the field, and so have no text beside the code."""

from __future__ import annotations

from grpo_mm.config.key_docs import doc_of


def meaning_of(cls: type, name: str) -> str:
    """What a field means: the text beside it, else that of `TEXTS`; "" where there is neither."""
    return doc_of(cls, name) or next((TEXTS[key] for one in cls.__mro__ if (key := (one.__name__, name)) in TEXTS), "")


TEXTS: dict[tuple[str, str], str] = {
    ("Lora", "rank"): "Rank of the two factors of each layer's change.",
    ("Lora", "alpha"): "The change is scaled by alpha / rank.",
    ("Lora", "init"): "Of the first factor; the second starts at 0, so that training starts from the model itself.",
    ("VlmEngine", "max_new_tokens"): "Longest answer of training, in tokens; a longer one is cut, and counted as truncated.",
    ("VlmEngine", "generator"): "What draws the tokens.",
    ("ClippedRatio", "clip_low"): "The ratio counts from 1 - clip_low on.",
    ("ClippedRatio", "clip_high"): "The ratio counts up to 1 + clip_high.",
    ("ClippedRatio", "dual_clip"): "Bound on the loss of actions with a negative advantage, in units of the advantage; null: none.",
    ("ClippedRatio", "aggregate"): "What the loss is a mean over: all tokens or actions, rows, or a constant length.",
    ("ClippedRatio", "weight"): "Of this term in the loss.",
    ("Kl", "form"): "Which estimate of the divergence from the reference.",
    ("Kl", "weight"): "β: of this term in the loss.",
    ("Source", "from_step"): "The first step in which it is drawn, counted from 0.",
    ("Ema", "decay"): "How much of the average stays at each averaging.",
    ("Ema", "every_updates"): "Optimiser updates between averagings.",
}  # fmt: skip
"""(class, field) -> its text."""
