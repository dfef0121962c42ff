"""One door for every `from_pretrained`: models, tokenizers and processors come whole, or a sentence says what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpo_mm.errors import ConfigError
from grpo_mm.outside import shown
from grpo_mm.weights.weight_files import (
    TORCH_FILES,
    check_finite,
    check_head,
    check_weight_file,
    name_some,
    parse_settings,
    read_settings,
    refusing,
)


def load_model(cls: Any, path: str, *, subfolder: str | None = None, **settings: Any) -> nn.Module:
    """`cls.from_pretrained`, for classes and Auto classes of transformers and diffusers; on the CPU, in eval mode.

    Raises:
        ConfigError: it cannot be loaded; a tensor is missing and would be random, is left over, is of another shape, or holds
            NaN or infinities.
    """
    where = _where(path, subfolder)
    _check_beside(Path(path, subfolder or ""))
    # transformers loads in threads; in a forked process the first call that touches torch's pool makes it anew, and two threads
    # that do so at once fail.
    torch.set_num_threads(torch.get_num_threads())
    if _of_transformers(cls):
        settings["ignore_mismatched_sizes"] = (
            True  # they are told below, where the library's own error does not name them
        )
    with refusing(where), _looking_at_files(path, subfolder):
        model, found = cls.from_pretrained(path, output_loading_info=True, **_common(cls, subfolder), **settings)
    check_whole(model, found, where=where)
    check_finite(model.state_dict(), where=where)
    return model.eval()


def load_other(cls: Any, path: str, *, subfolder: str | None = None, **settings: Any) -> Any:
    """The same for what has no weights: configs, tokenizers, processors, schedulers. A tokenizer has words, or is refused."""
    where = _where(path, subfolder)
    with refusing(where), _looking_at_files(path, subfolder):
        found = cls.from_pretrained(path, **_common(cls, subfolder), **settings)
    tokenizer = getattr(found, "tokenizer", found)
    if hasattr(tokenizer, "get_vocab"):
        check_tokenizer(tokenizer, where=where)
    return found


def load_processor(cls: Any, path: str, *, parts: Iterable[str], **settings: Any) -> Any:
    """A processor with the parts that are asked of it, such as "tokenizer" and "image_processor".

    Raises:
        ConfigError: it cannot be loaded, or lacks a part: an Auto class gives what it finds.
    """
    found = load_other(cls, path, **settings)
    missing = [part for part in parts if getattr(found, part, None) is None]
    if missing:
        raise ConfigError(
            f"{path} could not be loaded: it holds no {' and no '.join(missing)}, only a {type(found).__name__}. Is "
            "preprocessor_config.json or processor_config.json missing?"
        )
    return found


def check_whole(model: nn.Module, found: Mapping[str, Any], *, where: str) -> None:
    """Judges what `output_loading_info` tells; tied heads and what the class itself calls harmless are not in it.

    Raises:
        ConfigError: a tensor of the model is not in the file, one of the file not in the model, or the shapes differ.
    """
    problems = []
    if missing := set(found.get("missing_keys") or ()):
        problems.append(f"it lacks {len(missing)} of the model's tensors, which would be random: {name_some(missing)}")
    buffers = {name for name, _ in model.named_buffers()}  # what is computed and was stored by older versions
    if unexpected := {n for n in found.get("unexpected_keys") or () if n not in buffers and not _of_a_head(n, model)}:
        problems.append(f"it holds {len(unexpected)} tensors that the model has no place for: {name_some(unexpected)}")
    if mismatched := [
        " ".join(map(str, m)) if isinstance(m, tuple) else str(m) for m in found.get("mismatched_keys") or ()
    ]:
        problems.append(f"shapes differ: {name_some(mismatched)}")
    if errors := found.get("error_msgs"):
        problems.append(f"{shown(list(errors))}")
    if not problems and (left := [name for name, p in model.named_parameters() if p.is_meta]):
        problems.append(f"these tensors were not filled: {name_some(left)}")
    if problems:
        raise ConfigError(f"{where} is not a whole {type(model).__name__}: {'; '.join(problems)}.")


def check_tokenizer(tokenizer: Any, *, where: str) -> None:
    """Raises ConfigError for a tokenizer without words, as libraries make one where the files of its vocabulary are missing."""
    with refusing(where):
        # A vocabulary made of nothing may hold the mark of a blank beside the special tokens.
        words = {word for word in tokenizer.get_vocab() if any(c.isalnum() for c in str(word))}
        words -= set(tokenizer.all_special_tokens)
        ids = tokenizer("a red circle", add_special_tokens=False)["input_ids"]
    if not words or not ids or set(ids) == {tokenizer.unk_token_id}:
        raise ConfigError(
            f"{where}: its tokenizer is empty ({len(words)} tokens beside the special ones): the files of its vocabulary are "
            "missing (tokenizer.json, or vocab.json and merges.txt, or spiece.model)."
        )


def check_vocabulary(tokenizer: Any, model: nn.Module, *, where: str) -> None:
    """Raises ConfigError if the tokenizer has tokens that the model has no row for."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        token = next(name for name, number in tokenizer.get_vocab().items() if number == highest)
        raise ConfigError(
            f"{where}: the tokenizer counts to {highest + 1} tokens (the last is {shown(token)}), and the model's embedding has "
            f"{rows} rows. Resize the embedding in the checkpoint, or use the tokenizer that belongs to it."
        )


def check_chat(processor: Any, *, where: str, media: Iterable[str] = ()) -> None:
    """Raises ConfigError if the chat template is missing or cannot be run on a question (with media such as "image")."""
    question = "what is to be seen here"
    content = [*({"type": kind} for kind in media), {"type": "text", "text": question}]
    with refusing(f"{where}: its chat template"):
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    if question not in text:
        raise ConfigError(f"{where}: its chat template leaves out the question.")


def _check_beside(folder: Path) -> None:
    """What lies beside the weights of a local model, and what the libraries pass over or take in without a word.

    Raises:
        ConfigError: generation_config.json cannot be read; an adapter lies there, which would be put into the model.
    """
    if (folder / "generation_config.json").is_file():
        read_settings(folder / "generation_config.json")
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} holds an adapter (adapter_config.json) beside a model. Put it into a folder of its own and name that as "
            "policy.merge_adapter or policy.lora.start_from, or merge it where it was trained."
        )


@contextmanager
def _looking_at_files(path: str, subfolder: str | None) -> Iterator[None]:
    """If loading fails: whether a file is empty, cut off, a pointer or no JSON says more than what the library says."""
    try:
        yield
    except Exception:
        folder = Path(path, subfolder or "")
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix in (".safetensors", *TORCH_FILES) and file.is_file():
                check_weight_file(file)
            elif file.suffix == ".json" and file.is_file():
                _check_json(file)
        raise


def _check_json(file: Path) -> None:
    check_head(file)
    with refusing(str(file)):
        text = file.read_text(encoding="utf-8")
    if text.lstrip()[:1] != "[":
        found = parse_settings(text, where=str(file))
        if file.name.endswith(".index.json") and not isinstance(found.get("weight_map"), dict):
            raise ConfigError(f"{file} has no weight_map; wanted the file of each tensor.")


def _where(path: str, subfolder: str | None) -> str:
    return f"{path}, {subfolder}" if subfolder else path


def _common(cls: Any, subfolder: str | None) -> dict[str, Any]:
    """`trust_remote_code` stands explicitly: unset, transformers asks a terminal whether foreign code may run."""
    ours = {"trust_remote_code": False} if _of_transformers(cls) else {}
    return ours | ({"subfolder": subfolder} if subfolder else {})


def _of_transformers(cls: Any) -> bool:
    return bool(cls.__module__.startswith("transformers."))


def _of_a_head(name: str, model: nn.Module) -> bool:
    """Whether a tensor belongs to a head of the class that was saved, where its body alone is asked for."""
    saved = getattr(model.config, "architectures", None) or ()
    base = getattr(model, "base_model_prefix", "")
    is_body = getattr(model, "base_model", model) is model
    if not is_body or not saved or type(model).__name__ in saved or not base:
        return False
    return name.split(".")[0] not in {child for child, _ in model.named_children()} | {base}
