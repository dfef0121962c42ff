"""Golden pictures: recorded once, given again bit by bit, and apart when a scorer is wrong, with the cause."""

import hashlib
import json
import logging

import pytest
import torch
from served import Served
from tiny_reward_models import build_image_reward, build_open_clip, build_pick_score
from tiny_runs import write_config

from grpo_mm import train
from grpo_mm.errors import ConfigError, UserError
from grpo_mm.golden.comparing import check_goldens, lines, record
from grpo_mm.golden.drawn import FAULTS, KINDS, subjects
from grpo_mm.golden.entries import entry_of, file_of, kind_of_subjects, read, settings_of, write
from grpo_mm.looking.report.page import write_report
from grpo_mm.registry import entries, lookup
from grpo_mm.rewards.images import hps as hps_module
from grpo_mm.rewards.images.hps import Hps
from grpo_mm.rewards.images.image_reward import ImageReward
from grpo_mm.rewards.images.jpeg import JpegSize
from grpo_mm.rewards.images.pick_score import PickScore
from grpo_mm.rewards.service.remote import Remote
from grpo_mm.rollout.scoring import Scorer, Scoring
from grpo_mm.tools.golden import golden
from grpo_mm.types import Clips

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    clip = tmp_path_factory.mktemp("open_clip")
    build_open_clip(clip)
    pick = tmp_path_factory.mktemp("pick")
    build_pick_score(pick)
    return {"hps": clip, "pick_score": pick, "image_reward": build_image_reward(tmp_path_factory.mktemp("blip"))}


def made(folders, kind):
    folder = folders[kind]
    if kind == "hps":
        return Hps(model=str(folder), path=f"{folder}/hps.pt")
    return ImageReward(**folder) if kind == "image_reward" else PickScore(model=str(folder), processor=str(folder))


@pytest.fixture(scope="module")
def recorded(folders, tmp_path_factory):
    """Kind -> a file that holds what was recorded."""
    found = {}
    for kind in folders:
        found[kind] = tmp_path_factory.mktemp("golden") / "golden.json"
        write(found[kind], [record(Scoring({"a": Scorer(made(folders, kind))}, CPU), "a")])
    return found


def checked(use, file):
    return check_goldens(Scoring({"a": Scorer(use, golden=str(file))}, CPU))


def test_the_drawn_bytes_are_these_everywhere():
    digest = hashlib.sha256()
    for kind in sorted(KINDS):
        for one in subjects(kind):
            items = one.items[0].frames_FCHW[None] if isinstance(one.items, Clips) else one.items
            assert items.dtype == torch.uint8 and items.shape[0] == 1
            digest.update(repr(tuple(items.shape)).encode() + items.numpy().tobytes())
            digest.update(b"".join(medium.tobytes() for medium in one.prompt.media) + one.prompt.text.encode())
    assert digest.hexdigest()[:16] == "31d7b1529f6829be"
    pictures = [one.items for one in subjects("pictures")]
    assert len({picture.shape for picture in pictures}) == 3
    assert all(not torch.equal(picture, picture.flip(1)) for picture in pictures)


@pytest.mark.parametrize("kind", ["hps", "pick_score", "image_reward"])
def test_what_is_recorded_is_given_again_and_sees_the_faults(kind, folders, recorded):
    (entry,) = read(recorded[kind])
    assert len(set(entry.scores)) == 3 and entry.tolerance > 0 and entry.weights and entry.versions["torch"]
    assert set(entry.faults) == {"colours", "resize", "texts"} and list(entry.blind_to) == []
    state = checked(made(folders, kind), recorded[kind])["a"]
    assert state.verified and state.said.startswith("as recorded: ")


def test_recorded_scores_for_a_reward_that_has_no_golden_pictures_are_refused(recorded):
    with pytest.raises(ConfigError, match="rewards.a.golden: Remote has no golden pictures"):
        checked(Remote("http://127.0.0.1:1", "a"), recorded["hps"])


def _other_weights(use, folders, tmp_path, monkeypatch):
    tensors = torch.load(use.path)
    tensors["state_dict"]["visual.proj"] = tensors["state_dict"]["visual.proj"].flip(0)
    torch.save(tensors, tmp_path / "hps.pt")
    return Hps(model=use.model, path=str(tmp_path / "hps.pt"))


def _swapped_text(use, folders, tmp_path, monkeypatch):
    texts = [one.prompt.text for one in subjects("pictures")]
    other = dict(zip(texts, [*texts[1:], texts[0]]))
    right = use._text_features
    use._text_features = lambda asked: right([other[text] for text in asked])
    return use


def _bgr(use, folders, tmp_path, monkeypatch):
    right = use._image_features
    use._image_features = lambda images: right(images.flip(1))
    return use


def _wrong_resize(use, folders, tmp_path, monkeypatch):
    right = hps_module.hps_pixels
    monkeypatch.setattr(
        hps_module, "hps_pixels", lambda images, **settings: right(images, **settings | {"antialias": False})
    )
    return use


def _another_place_of_the_resize(use, folders, tmp_path, monkeypatch):
    """Squeezed into the square instead of padded."""
    from torchvision.transforms.functional import resize

    right = hps_module.hps_pixels
    monkeypatch.setattr(
        hps_module, "hps_pixels", lambda images, **s: right(resize(images, [32, 32], antialias=True), **s)
    )
    return use


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (_other_weights, r"Its weights are others: path/hps.pt \w{12} \(recorded \w{12}\)"),
        (_swapped_text, "So it would score them with the text of another picture. Its weights are those recorded"),
        (_bgr, "So it would score them with red and blue exchanged. Its weights are those recorded"),
        (_wrong_resize, "Its weights are those recorded"),
        (_another_place_of_the_resize, "Its weights are those recorded"),
    ],
)
def test_a_scorer_that_is_wrong_is_found_with_the_numbers(fault, cause, folders, recorded, tmp_path, monkeypatch):
    use = fault(made(folders, "hps"), folders, tmp_path, monkeypatch)
    number = r"-?[\d.e-]+"
    wanted = rf"'a' \(Hps\) scores its golden pictures {number}, {number}, {number}; recorded are {number}, {number}, {number} ± {number}\."
    with pytest.raises(UserError, match=rf"{wanted}.*{cause}"):
        checked(use, recorded["hps"])


def test_other_versions_are_named(folders, recorded, tmp_path):
    rows = json.loads(recorded["hps"].read_text())
    rows[0]["versions"]["torch"] = "1.0"
    rows[0]["scores"] = [score + 1 for score in rows[0]["scores"]]
    (tmp_path / "g.json").write_text(json.dumps(rows))
    with pytest.raises(
        UserError, match=rf"Other versions: torch {torch.__version__.partition('+')[0]}.* \(recorded 1.0\)"
    ):
        checked(made(folders, "hps"), tmp_path / "g.json")


def test_without_recorded_scores_it_says_so_once_and_goes_on(folders, caplog):
    scoring = Scoring({name: Scorer(made(folders, "hps")) for name in "ab"} | {"rule": Scorer(JpegSize())}, CPU)
    with caplog.at_level(logging.WARNING):
        found = check_goldens(scoring)
    assert set(found) == {"a", "b"} and not found["a"].verified
    assert len(caplog.records) == 1 and caplog.text.count("is unverified: no scores of its golden pictures") == 2
    caplog.clear()
    check_goldens(scoring, told=False)
    assert caplog.text == ""


def test_other_settings_are_no_entry_and_named_where_the_user_asked_for_one(folders, recorded):
    use = Hps(model=str(folders["hps"]), path=f"{folders['hps']}/hps.pt", antialias=False)
    assert not check_goldens(Scoring({"a": Scorer(use)}, CPU))["a"].verified
    with pytest.raises(ConfigError, match=r"other settings: antialias = True, here False for Hps; record it"):
        checked(use, recorded["hps"])
    with pytest.raises(ConfigError, match="holds nothing of it for PickScore"):
        checked(made(folders, "pick_score"), recorded["hps"])


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"scorer": "Hps", "settings": {}, "scores": [1, 2], "tolerance": 1}]',
             '[{"scorer": "Hps", "settings": {}, "scores": [1, 2, NaN], "tolerance": 1}]',
             '[{"scorer": "Hps", "settings": {}, "scores": [1, 2, 3], "tolerance": 0}]',
             '[{"scorer": "Hps", "settings": {}, "unverified": "x", "other": 1}]', '[{"scorer": 3, "settings": {}, "unverified": "x"}]'],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_refused(text, tmp_path):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(ConfigError, match="g.json cannot be read as golden scores"):
        read(tmp_path / "g.json")


def test_a_network_that_looks_at_nothing_is_not_recorded(folders):
    use = made(folders, "hps")
    use._image_features = lambda images: torch.ones(len(images), 16) / 4
    use._text_features = lambda texts: torch.ones(len(texts), 16) / 4
    with pytest.raises(UserError, match="gives 1, 1, 1 whatever it is shown"):
        record(Scoring({"a": Scorer(use)}, CPU), "a")
    with pytest.raises(ConfigError, match="JpegSize has no golden pictures"):
        record(Scoring({"a": Scorer(JpegSize())}, CPU), "a")


def test_every_scorer_with_published_weights_ships_an_entry():
    with_goldens = {}
    for entry in entries("reward"):
        found = lookup("reward", entry.kind)
        if getattr(found, "goldens", None) is not None:
            with_goldens[entry.kind] = found
    assert {"hps", "pick_score", "clip_score", "image_reward", "aesthetic", "vlm_yes_no", "ocr"} <= set(with_goldens)
    for kind, found in with_goldens.items():
        assert found.goldens in KINDS
        if kind in ("unified_reward", "edit_score"):  # whose weights are those of the model that is asked
            continue
        use = found()
        assert (
            file_of(use).is_file()
            and entry_of(use).unverified != "no scores of its golden pictures are recorded for these settings"
        )
    for kinds, words, _ in FAULTS.values():
        assert set(kinds) <= set(KINDS) and words


def test_a_run_says_it_in_its_folder_and_report(folders, recorded, tiny_sd3, tmp_path):
    folder = folders["pick_score"]
    use = {"kind": "pick_score", "model": str(folder), "processor": str(folder)}
    rewards = {"right": {"use": use, "golden": str(recorded["pick_score"])}, "new": {"use": use}}
    train(write_config(tmp_path, tiny_sd3, {"name": "said", "steps": 1, "rewards": rewards}))
    found = json.loads((tmp_path / "runs/said/scorers.json").read_text())
    assert found["right"]["verified"] and found["new"]["said"].startswith("unverified: ")
    page = write_report(tmp_path / "runs/said").read_text()
    assert "Scorers on their golden pictures" in page and "PickScore, unverified" in page
    rows = json.loads(recorded["pick_score"].read_text())
    rows[0]["scores"][1] += 1
    (tmp_path / "wrong.json").write_text(json.dumps(rows))
    rewards["right"]["golden"] = str(tmp_path / "wrong.json")
    with pytest.raises(UserError, match=r"set rewards.right.golden=FILE"):
        train(write_config(tmp_path, tiny_sd3, {"name": "refused", "steps": 1, "rewards": rewards}))
    assert not (tmp_path / "runs/refused/metrics.jsonl").exists()


def test_the_command_records_and_compares(folders, tiny_sd3, tmp_path):
    folder = folders["pick_score"]
    use = {"kind": "pick_score", "model": str(folder), "processor": str(folder)}
    config = write_config(
        tmp_path, tiny_sd3, {"rewards": {"pick": {"use": use}, "bright": {"use": "tiny_rewards:bright"}}}
    )
    assert [line.partition(" is ")[0][:30] for line in golden(config)] == ["pick (PickScore): unverified: "]
    (line,) = golden(config, to=tmp_path / "own.json")
    assert "recorded" in line and str(tmp_path / "own.json") in line
    (line,) = golden(config, [f"rewards.pick.golden={tmp_path / 'own.json'}"])
    assert "pick (PickScore): as recorded: " in line
    with pytest.raises(ConfigError, match="no reward 'x' in the config; there are bright, pick"):
        list(golden(config, names=["x"]))
    with pytest.raises(ConfigError, match="has no golden pictures"):
        list(golden(config, names=["bright"], to=tmp_path / "own.json"))
    assert any("golden pictures of a: unverified" in text for text in lines({"a": Scorer(made(folders, "hps"))}))


def test_who_asks_a_server_hears_that_its_scorer_is_unverified(caplog):
    one = Served({"far": JpegSize()}, golden={"far": "unverified: nobody knows"})
    with caplog.at_level(logging.WARNING):
        Remote(one.url, "far").to(CPU)
    one.close()
    assert "says of the reward 'far': unverified: nobody knows" in caplog.text


def test_settings_of_another_machine_are_the_same(folders):
    there = Hps(model="elsewhere/" + folders["hps"].name, path="hf-hub:x/y/hps.pt", batch_size=3)
    assert settings_of(there) == settings_of(made(folders, "hps"))
    assert kind_of_subjects(there) == "pictures"
