"""Where text goes on after a video: rotary positions by the rule that the released Qwen2-VL and Qwen2.5-VL were trained with.

Their authors' code, transformers before 5.3 and inference engines go on above the highest position so far, on whichever axis it
stands. In transformers from 5.3 on, text goes on from the video's place in space, whatever its clock says. Some of its versions,
before 5.3 and after, cut the seconds of a step to a whole number too: at 4 frames a second every clock stands still.
"""

from __future__ import annotations

import inspect
import math
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import torch

VideoPositions = Literal["authors", "library"]


def authors_rope_index(
    config: Any,
    input_ids: torch.Tensor,
    mm_token_type_ids: Any = None,
    image_grid_thw: Any = None,
    video_grid_thw: Any = None,
    second_per_grid_ts: Any = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions [3, N, L] by time, height and width, and how far above its index the next token of a row is, [N, 1]."""
    merge = config.vision_config.spatial_merge_size
    pace = getattr(
        config.vision_config, "tokens_per_second", None
    )  # None, Qwen2-VL: the clock counts steps of the grid
    media = {config.image_token_id: [], config.video_token_id: []}
    for token, grids in zip(media, (image_grid_thw, video_grid_thw)):
        for k, (t, h, w) in enumerate([] if grids is None else torch.as_tensor(grids).tolist()):
            time = torch.arange(t)
            if token == config.video_token_id and pace is not None:
                seconds = 1.0 if second_per_grid_ts is None else float(second_per_grid_ts[k])
                time = (time * seconds * pace).long()
            axes = torch.meshgrid(time, torch.arange(h // merge), torch.arange(w // merge), indexing="ij")
            media[token].append(torch.stack(axes).reshape(3, -1))
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    delta = torch.zeros(len(input_ids), 1, dtype=torch.long)
    is_token = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).cpu().bool()
    for row, ids in enumerate(input_ids.cpu()):
        ids, parts, start, at = ids[is_token[row]].tolist(), [], 0, 0
        while at < len(ids):
            if ids[at] in media:
                part = media[ids[at]].pop(0)
            else:
                end = next((i for i in range(at, len(ids)) if ids[i] in media), len(ids))
                part = torch.arange(end - at).expand(3, -1)
            parts.append(part + start)
            start, at = int(parts[-1].max()) + 1, at + part.shape[1]
        positions[:, row, is_token[row]] = torch.cat(parts, dim=1)
        delta[row] = start - len(ids)
    return positions.to(input_ids.device), delta.to(input_ids.device)


def follow_authors(model: Any) -> None:
    """Makes a Qwen2-VL or Qwen2.5-VL model of transformers find positions by their rule, in `forward` and in `generate`."""
    model.model.get_rope_index = partial(authors_rope_index, model.config)


def seconds_for_engines(seconds: float, steps: int, pace: float) -> float:
    """Seconds a step of the grid that lead an engine which computes clocks in float64 (vLLM) to the same positions.

    Here, as in the authors' code, clocks are float32: at 1.2 frames a second the fourth of pairs stands at 10, where float64
    takes what 5/3 s lost in its own rounding at its word and stands at 9.

    Args:
        steps: of the grid. pace: the checkpoint's `tokens_per_second`.
    """
    clock = (torch.arange(steps) * seconds * pace).long().tolist()
    found = max([seconds, *(time / (step * pace) for step, time in enumerate(clock) if step)])
    while any(int(step * (found * pace)) < time for step, time in enumerate(clock)):
        found = math.nextafter(found, math.inf)
    return found


def serving_code(rule: VideoPositions) -> list[str]:
    """Lines of Python that make `model` follow the rule without this package, and say which it is."""
    if rule == "library":
        return [
            "# Trained with text after a video going on from the video's place in space, the rule of transformers from 5.3 on.",
            f"# The run had transformers {version('transformers')}; other versions may cut the seconds of a step to a whole number.",
            "# vLLM and older transformers have another rule: serve videos with neither.",
        ]
    return [
        "# Trained with text after a video going on above the highest position so far, its clock included: the rule of the",
        "# model's authors, of vLLM and of transformers before 5.3. From 5.3 on transformers has another, which this replaces.",
        "# Some versions before 5.3 cut the seconds of a step to a whole number: serve no videos of Qwen2.5-VL with those.",
        "from functools import partial",
        "from typing import Any",
        "import torch",
        "",
        *inspect.getsource(authors_rope_index).splitlines(),
        "",
        "model.model.get_rope_index = partial(authors_rope_index, model.config)",
    ]
