"""A user's own question in the words of training: the template of the run's prompts around it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from string import Formatter
from typing import Any

from grpo_mm.config.recorded import is_own, is_recorded
from grpo_mm.config.typed_yaml import component
from grpo_mm.errors import ConfigError
from grpo_mm.outside import plain, shown
from grpo_mm.registry import Role, only_known
from grpo_mm.rollout.phrasing import Way, template_of, way_of

log = logging.getLogger(__name__)

QUESTION = ("query", "question", "prompt", "text", "problem", "instruction", "caption")
"""Names by which templates take the question, the first that stands in one."""
LONGEST_FORMAT = 8


def phrased(
    texts: Sequence[str],
    sources: Any,
    *,
    run: Path | Mapping[str, Any],
    trust: bool,
    source: str | None = None,
    words: Mapping[str, str],
) -> list[str]:
    """Each text as a prompt of training would ask it.

    A reader says so itself (`phrase(text)`), or has a `template` in which {query} is the question; the text stands as it is where
    it has neither. Readers are made for that, nothing is loaded.

    Args:
        sources: `prompts` of the run's plain config.
        source: whose template; needed where the sources ask differently.
        words: for the other names in the template.

    Raises:
        ConfigError: the sources ask differently, there is no such source, or a name in the template has no word.
    """
    named = sources if isinstance(sources, Mapping) else {}
    if source is not None and source not in named:
        raise ConfigError(f"--source {shown(source)}: the run trains on {', '.join(map(str, named)) or 'no prompts'}.")
    chosen = {name: entry for name, entry in named.items() if source in (None, name)}
    ways = {name: _way(name, entry, run, trust=trust) for name, entry in chosen.items()}
    templates = {way for way in ways.values() if isinstance(way, str)}
    unused = sorted(set(words) - set().union(*map(_names, templates)))
    if unused:
        raise ConfigError(f"--word {unused[0]}: no template of the run's prompts has {{{unused[0]}}}.")
    asked = {name: [_said(way, text, words, name) for text in texts] for name, way in ways.items()}
    if not asked:
        return list(texts)
    first = next(iter(asked.values()))
    if any(other != first for other in asked.values()):
        raise ConfigError(
            f"the run's prompts are asked in different words by source: {', '.join(map(str, asked))}. Name one with --source, or add "
            "--raw to ask the bare text."
        )
    if first != list(texts):
        log.info("asked in the words of training (--raw leaves them out): %s", plain(first[0], 400))
    return first


def templates(sources: Any, *, run: Path, trust: bool) -> dict[str, str]:
    """The templates of the sources that have one, by their names."""
    named = sources if isinstance(sources, Mapping) else {}
    found = {name: template_of(_way(name, entry, run, trust=trust)) for name, entry in named.items()}
    return {str(name): template for name, template in found.items() if template is not None}


def _way(name: str, entry: Any, run: Path | Mapping[str, Any], *, trust: bool) -> Way | None:
    template = _template(entry)
    if template is not None:
        return template
    trusted = trust or isinstance(run, Mapping) or not is_recorded(run) or is_own(run if run.is_dir() else run.parent)
    try:
        with nullcontext() if trusted else only_known(str(run)):
            use = entry.get("use") if isinstance(entry, Mapping) else None
            reader = component(Role("prompts"), use, path=f"prompts.{name}.use")
    except ConfigError as error:
        log.warning("prompts.%s: how its reader asks is not known, so texts stand as they are: %s", name, error)
        return None
    return way_of(reader)


def _said(way: Way | None, text: str, words: Mapping[str, str], source: str) -> str:
    if way is None:
        return text
    return _filled(way, text, words, source) if isinstance(way, str) else way(text)


def _template(entry: Any) -> str | None:
    """That of the plain settings of a source; a reader that others wrap has it within `of`."""
    use = entry.get("use") if isinstance(entry, Mapping) else None
    while isinstance(use, Mapping):
        if isinstance(use.get("template"), str):
            return use["template"]
        use = use.get("of")
    return None


def _names(template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        return set()


def _filled(template: str, text: str, words: Mapping[str, str], source: str) -> str:
    where = f"prompts.{source}.use.template = {shown(template)}"
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(f"{where} is no template: {error}. Add --raw to ask the bare text.") from error
    names = {name for _, name, _, _ in parts}
    question = next((name for name in QUESTION if name in names), None)
    if question is None:
        raise ConfigError(
            f"{where} asks the same of every row and takes no question. Add --raw to ask a text of your own."
        )
    lacking = sorted(names - {question} - set(words))
    if lacking:
        raise ConfigError(
            f"{where} wants {', '.join(f'{{{name}}}' for name in lacking)} beside the question: give --word {lacking[0]}=…, or the "
            "whole text and --raw."
        )
    if any("." in name or "[" in name or len(spec or "") > LONGEST_FORMAT for _, name, spec, _ in parts):
        raise ConfigError(f"{where} reaches into its words, which is not done here. Give the whole text and --raw.")
    try:
        return template.format(**{name: _value(word) for name, word in words.items()}, **{question: text})
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ConfigError(f"{where} cannot be filled in: {error}. Give the whole text and --raw.") from error


def _value(word: str) -> str | float:
    """A number where it reads as one, for templates such as {duration:.1f}."""
    try:
        return float(word) if not word.isdigit() else int(word)
    except ValueError:
        return word
