"""Pictures that a checkpoint cannot make are refused by its own figures, before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from grpo_mm.errors import ConfigError
from grpo_mm.pipelines.flow.models.family import resolve
from grpo_mm.pipelines.flow.models.flux import Flux
from grpo_mm.pipelines.flow.models.picture_sizes import PictureSizes, sizes_of, sizes_on_disk
from grpo_mm.pipelines.flow.models.sd3 import Sd3
from grpo_mm.pipelines.flow.policy import FlowPolicyConfig

ZOO = "zoo:text_to_image"


@pytest.mark.parametrize("setting", ["height", "width", "eval_height", "eval_width"])
@pytest.mark.parametrize(
    ("value", "word"),
    [
        (28, "at most 24"), (32, "at most 24"), (64, "at most 24"), (500, "at most 24"), (512, "at most 24"),
        (0, "multiple of 4"), (-4, "multiple of 4"), (26, "multiple of 4"), (2, "multiple of 4"),
    ],
)  # fmt: skip
def test_sides_beyond_the_table_of_positions_or_between_tokens_are_refused(setting, value, word):
    sizes = {"height": 24, "width": 24} | {setting: value}
    with pytest.raises(ConfigError, match=f"policy.{setting} = {value}; wanted .*{word}"):
        FlowPolicyConfig(model=Sd3(ZOO), text_length=0, **sizes).check()


@pytest.mark.parametrize("value", [4, 20, 24])
def test_sides_within_it_are_not(value):
    FlowPolicyConfig(model=Sd3(ZOO), text_length=0, height=value, width=24, eval_height=value, eval_width=24).check()


def test_the_longest_side_really_is(tiny_sd3):
    """One token less than refused goes through the network; one more would not."""
    pipe = Sd3(tiny_sd3).load(torch.float32, full=False)
    sizes = sizes_on_disk(tiny_sd3)
    side = sizes.most_px // pipe.vae_scale_factor
    condition = Sd3(tiny_sd3).encode(pipe, "a", text_length=1, guidance=1.0)
    for latent, fits in ((side, True), (side + sizes.token_px // pipe.vae_scale_factor, False)):
        x = torch.zeros(1, pipe.transformer.config.in_channels, latent, 2)

        def through(x=x):
            return Sd3(tiny_sd3).velocity(pipe, x, torch.ones(1), condition, guidance=1.0, size=(0, 0))

        if fits:
            assert through().shape == x.shape
        else:
            with pytest.raises(ValueError, match="pos_embed"):
                through()


def test_flux_computes_its_positions(tiny_flux):
    sizes = sizes_on_disk(tiny_flux)
    assert sizes.most_px is None
    FlowPolicyConfig(model=Flux(tiny_flux), height=sizes.token_px * 300, width=sizes.token_px).check()
    with pytest.raises(ConfigError, match=f"multiple of {sizes.token_px}"):
        FlowPolicyConfig(model=Flux(tiny_flux), height=sizes.token_px + 1, width=sizes.token_px).check()


def test_known_checkpoints():
    eight = {"block_out_channels": [128, 256, 512, 512]}
    assert sizes_of(eight, {"patch_size": 2, "pos_embed_max_size": 384}, where="m") == PictureSizes(16, 6144)
    assert sizes_of(eight, {"patch_size": 2, "pos_embed_max_size": 192}, where="m") == PictureSizes(16, 3072)
    assert sizes_of(eight, {"patch_size": 4, "pos_embed_max_size": 96}, where="m") == PictureSizes(32, 3072)
    assert sizes_of(eight, {"patch_size": 1}, where="m") == PictureSizes(16)  # FLUX.1 packs two latents by two
    assert sizes_of({}, {}, where="m") == sizes_on_disk("nobody/knows") == PictureSizes()


@pytest.mark.parametrize("value", ["six", 0, 1.5, None, True, [6]])
def test_figures_that_are_none_are_refused_by_their_name(value):
    with pytest.raises(ConfigError, match="pos_embed_max_size|patch_size"):
        sizes_of({"block_out_channels": [1, 1]}, {"pos_embed_max_size": value or 0, "patch_size": value}, where="m")
    with pytest.raises(ConfigError, match="block_out_channels"):
        sizes_of({"block_out_channels": 4}, {}, where="m")


def test_a_checkpoint_that_was_not_at_hand_is_asked_once_it_is(monkeypatch):
    """As one on the hub: the settings are not there when the config is read."""
    from grpo_mm.pipelines.flow import settings

    monkeypatch.setattr(settings, "sizes_on_disk", lambda path, revision=None: PictureSizes())
    config = FlowPolicyConfig(model=Sd3(ZOO), text_length=0, height=32, width=32)
    config.check()
    policy = config.load(torch.device("cpu"))
    for evaluation in (False, True):  # what an engine asks before it samples; decoding alone needs no positions
        with pytest.raises(ConfigError, match="policy.height = 32; wanted at most 24"):
            policy.size(evaluation=evaluation)


def test_a_tokenizer_that_fills_beyond_its_encoders_positions_is_refused(tmp_path):
    folder = Path(shutil.copytree(resolve(ZOO), tmp_path / "m"))
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 77}))
    with pytest.raises(ConfigError, match="model_max_length is 77, and the model has positions for 12 tokens"):
        Sd3(str(folder)).load(torch.float32, full=False)
