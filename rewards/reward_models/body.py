"""A Qwen2-VL or Qwen2.5-VL without its words, and heads that read it at reward tokens: the network of HPSv3, VideoAlign and EditReward."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpo_mm.errors import ConfigError, UserError
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.weights import check_file, check_model, check_packages, load_strictly, read_tensors
from grpo_mm.weights.pretrained import check_chat, load_other, load_processor
from grpo_mm.weights.weight_files import refusing

PIXELS = 256 * 28 * 28
"""Of a picture or a frame, as the authors of all three set it: 256 tokens."""
FACTOR = 28
"""Sides are multiples of so many pixels: patches of 14, two by two."""
FILES = ("model.safetensors", "model.pth")


def mlp_head(width: int, outputs: int) -> nn.Module:
    """Of HPSv3 and EditReward: three layers, 1024 and 16 wide."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, outputs)
    )


def linear_head(width: int, outputs: int) -> nn.Module:
    """Of VideoAlign."""
    return nn.Linear(width, outputs, bias=False)


class BodyWithHeads(nn.Module):
    """`body` is transformers' own model without its words; `heads` are read at the reward tokens, in float32."""

    def __init__(self, config: Any, heads: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import AutoModel

        self.body = AutoModel.from_config(config, dtype=dtype)
        self.heads = nn.ModuleList(heads).float()

    def forward(self, inputs: Mapping[str, Tensor], tokens: Sequence[int], head: int = 0) -> Tensor:
        """What a head says at each of T reward tokens, [M, T, outputs].

        Positions are 0, 1, 2, … also over pictures: the authors hand their model embeddings without the grids, and transformers then
        knows no rows and columns.

        Raises:
            UserError: a reward token is not in a row once.
        """
        ids_ML = inputs["input_ids"]
        rows, length = ids_ML.shape
        positions = torch.arange(length, device=ids_ML.device).expand(3, rows, length)
        shown = {
            name: value
            for name, value in inputs.items()
            if name.startswith(("pixel_values", "image_grid", "video_grid"))
        }
        hidden_MLD = self.body(
            input_ids=ids_ML, attention_mask=inputs["attention_mask"], position_ids=positions, use_cache=False, **shown
        ).last_hidden_state
        places = []
        for token in tokens:
            is_it_ML = ids_ML == token
            if not bool((is_it_ML.sum(1) == 1).all()):
                raise UserError(f"the reward token {token} does not stand in each question once.")
            places.append(is_it_ML.int().argmax(1))
        place_MT = torch.stack(places, 1)
        read_MTD = hidden_MLD.gather(1, place_MT[:, :, None].expand(-1, -1, hidden_MLD.shape[2]))
        return self.heads[head](read_MTD.float())


class BodyReward(Network):
    """What the three share: files, the processor with its reward tokens, pictures brought to size."""

    model: str
    path: str
    dtype: str
    tokens: Sequence[str]
    """The reward tokens, in the order in which they were added to the tokenizer."""

    def check(self) -> None:
        """Raises ConfigError if transformers or a local file is missing, or a question lacks its places."""
        check_packages("transformers", "torchvision")
        check_model("model", self.model, file="tokenizer_config.json")
        if not os.path.isdir(self.path):
            check_file("path", self.path)
        self._questions()

    def _questions(self) -> tuple[str, ...]:
        """The templates, checked; raises ConfigError."""
        raise NotImplementedError

    def _load_body(self, heads: int, head: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Fills the network with tensors under the names of `ours`."""
        from tokenizers import AddedToken
        from transformers import AutoConfig, AutoProcessor

        self._processor = load_processor(AutoProcessor, self.model, parts=("tokenizer", "image_processor"))
        check_chat(self._processor, where=self.model, media=[self._medium])
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "right"
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self.tokens], special_tokens=True
        )
        self._token_ids = tokenizer.convert_tokens_to_ids(list(self.tokens))
        config = load_other(AutoConfig, self.model)
        text = config.get_text_config()
        rows = tensors.get("body.language_model.embed_tokens.weight", torch.zeros(0, 0)).shape[0]
        if rows and not max(self._token_ids) < rows:
            raise ConfigError(
                f"{self.path}: its embedding has {rows} rows, and the tokenizer of {self.model} with {', '.join(self.tokens)} counts to "
                f"{max(self._token_ids) + 1}: that model is not the one that it was trained from."
            )
        text.vocab_size = rows or text.vocab_size
        with refusing(self.model):
            network = BodyWithHeads(config, [head(text.hidden_size) for _ in range(heads)], getattr(torch, self.dtype))
        load_strictly(network, dict(tensors), path=self.path)
        return network

    _medium = "image"

    def _ask(self, texts: Sequence[str], images: Sequence[Sequence[Any]], head: int = 0) -> Tensor:
        """[M, T, outputs] for M questions with their pictures (PIL, brought to size)."""
        turns = [
            [{"role": "user", "content": [*({"type": "image"} for _ in some), {"type": "text", "text": text}]}]
            for text, some in zip(texts, images)
        ]
        asked = [
            self._processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns
        ]
        inputs = self._processor(
            text=asked, images=[list(some) for some in images], padding=True, return_tensors="pt",
            images_kwargs={"do_resize": False},
        )  # fmt: skip
        return self._read(inputs, head)

    def _read(self, inputs: Any, head: int = 0) -> Tensor:
        inputs = {name: value.to(self._device) for name, value in inputs.items() if isinstance(value, Tensor)}
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(getattr(torch, self.dtype))
        return self._model(inputs, self._token_ids, head)


def sized(picture_CHW: Tensor, pixels: int) -> Any:
    """A uint8 picture as PIL, in its shape, with as near `pixels` pixels as sides of whole tokens allow (bicubic)."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    image = Image.fromarray(picture_CHW.permute(1, 2, 0).contiguous().cpu().numpy())
    height, width = smart_resize(image.height, image.width, factor=FACTOR, min_pixels=pixels, max_pixels=pixels)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def question(template: str, text: str) -> str:
    """A template with a prompt in it, which can bring no token of its own: a prompt that names one would be read there."""
    return template.replace("{prompt}", re.sub(r"<\|", "< |", text))


def template_of(name: str, given: str | None, own: str, tokens: Sequence[str]) -> str:
    """The text of a file, or our own; raises ConfigError if `{prompt}` or a reward token does not stand in it once."""
    try:
        text = own if given is None else Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} = {given!r} cannot be read: {error}.") from error
    wrong = [part for part in ("{prompt}", *tokens) if text.count(part) != 1]
    if wrong:
        raise ConfigError(f"{name} = {given!r}: {', '.join(wrong)} must stand in it once.")
    return text


def tensors_of(path: str, *, inside: Sequence[str] = FILES) -> dict[str, Tensor]:
    """Of a file, a file on the hub, or a folder with one of `inside`; raises ConfigError."""
    if not os.path.isdir(path):
        return read_tensors(path)
    found = [os.path.join(path, name) for name in inside if os.path.isfile(os.path.join(path, name))]
    if not found:
        raise ConfigError(f"path = {path!r} holds none of {', '.join(inside)}.")
    return read_tensors(found[0])


_RENAMED = (
    (r"^(?:module|base_model\.model)\.", ""),
    (r"\.base_layer\.", "."),
    (r"\.modules_to_save\.default\.", "."),
    (r"^model\.(visual|language_model)\.", r"body.\1."),
    (r"^visual\.", "body.visual."),
    (r"^model\.", "body.language_model."),
    (r"^rm_head\.", "heads.0."),
    (r"^rm_heads\.head_(\d+)\.", r"heads.\1."),
)
_UNUSED = re.compile(r"(^|\.)(lm_head\.weight|rotary_emb\.inv_freq)$|\.original_module\.")
_LORA = re.compile(r"\.lora_([AB])(?:\.default)?\.weight$")


def ours(tensors: Mapping[str, Tensor], *, lora_scale: float | None = None) -> dict[str, Tensor]:
    """Published tensors under the names of `BodyWithHeads`: of transformers before and after 4.52, of a wrapped model, with adapters
    merged; those for words are left out.

    Raises:
        ConfigError: adapters without a scale, or without their other half.
    """
    renamed = {_renamed(name): value for name, value in tensors.items() if not _UNUSED.search(name)}
    halves: dict[str, dict[str, Tensor]] = {}
    found: dict[str, Tensor] = {}
    for name, value in renamed.items():
        lora = _LORA.search(name)
        if lora is None:
            found[name] = value
        else:
            halves.setdefault(name[: lora.start()] + ".weight", {})[lora[1]] = value
    for name, pair in halves.items():
        if lora_scale is None or set(pair) != {"A", "B"} or name not in found:
            raise ConfigError(
                f"the weights hold an adapter of {name} "
                + ("without its scale (model_config.json)." if lora_scale is None else "without its other half.")
            )
        whole = found[name]
        found[name] = (whole.float() + lora_scale * pair["B"].float() @ pair["A"].float()).to(whole.dtype)
    return found


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
