"""Ask a vision-language model whether the picture shows what the prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpo_mm.errors import ConfigError
from grpo_mm.identity import FREE
from grpo_mm.rewards.shared.networks import Network
from grpo_mm.rewards.shared.pictures import takes_pictures
from grpo_mm.rewards.shared.weights import DType, check_model, check_packages
from grpo_mm.types import Prompt
from grpo_mm.weights.pretrained import check_chat, check_vocabulary, load_model, load_processor


@dataclass
class VlmYesNo(Network):
    """score = p(yes) / (p(yes) + p(no)) for the first token of the answer, 0 to 1.

    The parts are `p_yes` and `p_no`; when their sum is far below 1 the model means to answer something else. Each adds
    up the ways of writing the word that are one token (Yes, yes, YES, with and without a blank in front).

    Source: arXiv:2404.01291 (VQAScore). Deviates: that is p("Yes") alone, which is high or low with the model's
    readiness to say yes or no at all; a chat model by its own template; all spellings count.
    """

    goldens: ClassVar[str] = "pictures"
    """What it is tried on (`grpo_mm/golden`)."""
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A chat model for pictures in transformers' format: a name on the hub or a local folder."""
    question: str = "Does this image show {prompt}? Answer yes or no."
    """`{prompt}` stands for the prompt's text; it may be left out."""
    batch_size: int = field(default=8, metadata=FREE)
    """Pictures or texts in one forward; changes memory and speed, not the scores."""
    dtype: DType = "bfloat16"
    """What the network computes in."""

    def check(self) -> None:
        """Raises ConfigError if transformers or a local folder is missing."""
        check_packages("transformers")
        check_model("model", self.model)

    @takes_pictures
    @torch.no_grad()
    def __call__(self, items: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """uint8 [M, 3, H, W] and M prompts -> score [M], p_yes [M], p_no [M]."""
        self._load()
        questions = [self.question.replace("{prompt}", prompt.text) for prompt in prompts]
        chunks = [slice(i, i + self.batch_size) for i in range(0, len(questions), self.batch_size)]
        log_p_MV = torch.cat([self._first_token(items[chunk], questions[chunk]) for chunk in chunks])
        yes, no = log_p_MV[:, self._yes].logsumexp(-1), log_p_MV[:, self._no].logsumexp(-1)
        return {"score": (yes - no).sigmoid(), "p_yes": yes.exp(), "p_no": no.exp()}

    def _first_token(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """Log-probabilities of the answer's first token, [M, V] float32."""
        inputs = self.inputs(images, questions).to(self._device, self._model.dtype)
        out = self._model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return out.logits[0].float().log_softmax(-1)

    def inputs(self, images: Tensor, questions: Sequence[str]) -> Any:
        """What the model gets: one turn with a picture and a question each, padded on the left."""
        from PIL import Image

        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        texts = [
            self._processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns
        ]
        pictures = [[Image.fromarray(image)] for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
        return self._processor(text=texts, images=pictures, padding=True, return_tensors="pt")

    def _build(self) -> torch.nn.Module:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = load_processor(AutoProcessor, self.model, parts=("tokenizer", "image_processor"))
        check_chat(self._processor, where=self.model, media=["image"])
        self._processor.tokenizer.padding_side = "left"
        self._yes, self._no = (single_tokens(self._processor.tokenizer, word) for word in ("yes", "no"))
        model = load_model(AutoModelForImageTextToText, self.model, dtype=getattr(torch, self.dtype))
        check_vocabulary(self._processor.tokenizer, model, where=self.model)
        return model


def single_tokens(tokenizer: Any, word: str) -> list[int]:
    """The tokens that spell a word, whatever its case and with or without a blank in front.

    Raises:
        ConfigError: no spelling is one token.
    """
    spellings = [blank + form for form in (word, word.capitalize(), word.upper()) for blank in ("", " ")]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    found = sorted({tokens[0] for tokens in encoded if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id})
    if not found:
        raise ConfigError(f"this model's tokenizer has no single token for {word!r}; its answers cannot be read so.")
    return found
