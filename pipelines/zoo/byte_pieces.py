"""A tokenizer of Qwen's kind with a small vocabulary: any text in bytes, chosen words in one token each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

CHAT_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def byte_tokenizer(words: Iterable[str], *, tags: Sequence[str] = ()) -> Any:
    """A `Qwen2Tokenizer` (byte-level BPE, every digit by itself) with Qwen's chat and vision tokens.

    Args:
        words: each is one token, with a blank before it and without. Any other text falls into smaller pieces, in the
            end into bytes, so that nothing is unknown.
        tags: one token each. They are not special: decoding keeps them.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    pieces, merges = _byte_pairs(sorted({blank + word for word in words for blank in ("", " ")}))
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=[token for token in CHAT_TOKENS if token not in ("<|endoftext|>", "<|im_end|>")],
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def _byte_pairs(texts: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges that make each text one piece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # no limit: it stops when every text is one piece
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]
