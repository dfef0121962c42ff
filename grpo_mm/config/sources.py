"""What a config names and does not hold: the code of a user's own components, and the files of data. As digests.

Of code: the whole source file of a function or class, and of every module that it imports by a name that leads to a file of the
user's own (not one that is installed), however far; of a notebook or a script the text of the function or class and of what it
calls there. A comment counts. What code reads by itself, from other files or from the net, is not known here.
Of data: files that settings of `prompts`, `eval_prompts` and `rewards` name (`training.data_digests` adds what their rows bring in). One above `WHOLE_BYTES` by its size, its time and its
first and last MiB. Of a folder the names and sizes of its first `MOST_FILES` files.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from grpo_mm.config.differences import Difference, components_of
from grpo_mm.config.settings import Settings
from grpo_mm.identity import identity_of
from grpo_mm.outside import reason

WHOLE_BYTES = 64 * 2**20
END_BYTES = 2**20
MOST_FILES = 1000
MOST_MODULES = 200
OF_DATA = ("prompts", "eval_prompts", "rewards")
GONE = "gone"
"""In place of the digest of a file that is not there."""

Digests = dict[str, dict[str, str]]
"""Dotted key -> name of a file, a function or a class -> digest."""


def sources_of(config: Settings) -> dict[str, Digests]:
    """{"code": digests, "data": digests}; of what stands below a key that is free there are none."""
    code: Digests = {}
    data: Digests = {}
    for key, _, component, identity in components_of(config):
        if identity == "free":
            continue
        for thing in _code_of(component):
            code.setdefault(key, {}).update(_digests_of_code(thing))
        if key.partition(".")[0] in OF_DATA:
            found = {name: digest for path in _paths(component) for name, digest in _digests_of_data(path)}
            data |= {key: found} if found else {}
    return {"code": code, "data": data}


def places_of(config: Settings) -> dict[str, Any]:
    """Where things are found that the config names without a whole path. Example: {"started_in": "/home/me", "modules": ["/home/me/mine"]}."""
    things = [thing for _, _, component, _ in components_of(config) for thing in _code_of(component)]
    roots = [root for thing in things if (root := _root_of(str(thing.__module__))) is not None]
    return {"started_in": os.getcwd(), "modules": list(dict.fromkeys(roots))}


def _root_of(module: str) -> str | None:
    """The folder from which a module of the user's own is imported."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is None:
        return None
    path = Path(file).resolve()
    depth = module.count(".") + (path.name == "__init__.py")
    root = path.parents[depth] if depth < len(path.parents) else path.parent
    return None if any(path.is_relative_to(place) for place in _installed()) else str(root)


def changed(there: Mapping[str, Any], here: Mapping[str, Digests]) -> list[Difference]:
    """What differs, as noted differences; of keys that only one of both has the config tells itself."""
    found = []
    for what in ("code", "data"):
        recorded = there.get(what)
        for key, digests in here[what].items():
            were = recorded.get(key) if isinstance(recorded, Mapping) else None
            if isinstance(were, Mapping):
                found += [
                    Difference(f"{what} of {key}", there, here, "noted", words=words)
                    for there, here, words in _changed(were, digests)
                ]
    return found


def _changed(were: Mapping[str, Any], are: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(there, here, in words) of what both know, and of what is gone from a folder. What a folder gets beside it is nobody's change:
    readers unpack into it, worlds draw into it. A module that is imported no more is known by the one that did it."""
    folders = tuple(name for name in were if name.endswith("/") and name in are)
    for name in sorted(were):
        if name in are and were[name] != are[name]:
            if GONE in (were[name], are[name]):
                yield str(were[name]), are[name], f"{name} is {'gone' if are[name] == GONE else 'there again'}"
                continue
            if str(were[name]).endswith("bytes") != are[name].endswith("bytes"):  # one by its size, one by its content
                continue
            there, here = (text if text.endswith("bytes") else text[:8] for text in (str(were[name]), are[name]))
            yield f"{name} {there}", f"{name} {here}", f"{name} has changed ({there} → {here})"
        elif name not in are and name.startswith(folders) and folders:
            yield name, "gone", f"{name} is gone"


def _code_of(component: Any) -> list[Any]:
    """The functions and classes of a component that are the user's own."""
    if isinstance(component, partial):
        inside = [component.func, *component.args, *component.keywords.values()]
        return [thing for part in inside if callable(part) for thing in _code_of(part)]
    thing = getattr(component, "__func__", component)
    thing = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    called = getattr(component, "users_function", None)
    return [one for one in (thing, *([] if called is None else [called])) if not _is_installed(one)]


def _is_installed(thing: Any) -> bool:
    module = str(getattr(thing, "__module__", "") or "")
    return module.partition(".")[0] in ("grpo_mm", "builtins", "functools")


def _digests_of_code(thing: Any) -> dict[str, str]:
    module = sys.modules.get(str(thing.__module__))
    file = getattr(module, "__file__", None)
    if thing.__module__ == "__main__" or file is None:
        return _digests_of_text(thing)
    try:
        base = Path(file).resolve().parent
        return {os.path.relpath(path, base): _sha256(path.read_bytes()) for path in _with_imports(Path(file))}
    except OSError:
        return _digests_of_text(thing)


def _digests_of_text(thing: Any, done: frozenset[str] = frozenset()) -> dict[str, str]:
    """Of a notebook's or a script's function or class, and of those there that it names."""
    name = str(getattr(thing, "__qualname__", type(thing).__name__))
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # made by exec, or written in C
        text = repr(_compiled(thing))
    found = {f"{thing.__module__}:{name}": _sha256(text.encode())}
    beside = vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}
    known = getattr(thing, "__globals__", beside)
    for word in sorted(_words(text)):
        other = known.get(word)
        own = (inspect.isfunction(other) or inspect.isclass(other)) and other.__module__ == thing.__module__
        if own and word not in done and other is not thing and len(done) < MOST_MODULES:
            found |= _digests_of_text(other, done | {word, name})
    return found


def _compiled(thing: Any) -> Any:
    """What a function or a class does, without where it stands; None of what is written in C."""
    if inspect.isclass(thing):
        return [(name, _compiled(part)) for name, part in sorted(vars(thing).items()) if hasattr(part, "__code__")]
    code = getattr(thing, "__code__", thing if inspect.iscode(thing) else None)
    if code is None:
        return None
    constants = [_compiled(one) if inspect.iscode(one) else one for one in code.co_consts]
    return code.co_code, code.co_names, constants


def _words(text: str) -> set[str]:
    try:
        return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    except SyntaxError:  # a lambda in the middle of a line
        return set()


def _with_imports(file: Path) -> list[Path]:
    """A source file and those of the user's own modules that it imports, and that these import."""
    found, waiting = [], [file.resolve()]
    while waiting and len(found) < MOST_MODULES:
        path = waiting.pop(0)
        if path in found or not path.is_file():
            continue
        found.append(path)
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        waiting += [other for name, level in _imported(tree) for other in _found(name, level, path)]
    return found


def _imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, dots before it) of everything that is imported, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield base, node.level
            yield from ((f"{base}.{alias.name}".lstrip("."), node.level) for alias in node.names)


def _found(name: str, level: int, importer: Path) -> list[Path]:
    top = name.partition(".")[0]
    if not level and (top in sys.stdlib_module_names or top == "grpo_mm"):
        return []
    if level:
        roots = [importer.parents[level - 1]] if level <= len(importer.parents) else []
    else:
        roots = [importer.parent, *(Path(entry or os.getcwd()) for entry in sys.path)]
    parts = [part for part in name.split(".") if part]
    for root in roots:
        inside = root.joinpath(*parts)
        here = [
            path.resolve() for path in (inside.with_suffix(".py"), inside / "__init__.py") if parts and path.is_file()
        ]
        if here:
            return [path for path in here[:1] if not any(path.is_relative_to(place) for place in _installed())]
    return []


@cache
def _installed() -> tuple[Path, ...]:
    own = {path for name, path in sysconfig.get_paths().items() if "lib" in name}
    # Of another environment as well that this one sees (a .pth file, --system-site-packages).
    seen = {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    return tuple({Path(path).resolve() for path in own | seen})


def _paths(component: Any) -> list[Path]:
    """What the settings of a component name that is there."""
    found: list[Path] = []
    for field in fields(component) if is_dataclass(component) and not isinstance(component, type) else ():
        value = getattr(component, field.name, None)
        texts = value if isinstance(value, (list, tuple)) else (value,)
        if field.init and identity_of(field, "noted") != "free":
            found += [Path(text) for text in texts if isinstance(text, (str, os.PathLike)) and _is_there(text)]
    return found


def _is_there(text: str | os.PathLike[str]) -> bool:
    try:
        return bool(os.fspath(text)) and os.path.exists(text)
    except (OSError, ValueError):
        return False


def _digests_of_data(path: Path) -> Iterator[tuple[str, str]]:
    try:
        if not path.is_dir():
            yield str(path), _file(path)
            return
        yield f"{path}/", "names and sizes"
        for number, file in enumerate(_within(path)):
            if number == MOST_FILES:
                break
            yield str(file), f"{file.stat().st_size} bytes"
    except OSError as error:
        yield str(path), f"cannot be read: {reason(error)}"


def _within(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(top, name) for name in sorted(names))


def _file(path: Path) -> str:
    about = path.stat()
    if about.st_size <= WHOLE_BYTES:
        return _sha256(path.read_bytes())
    with path.open("rb") as file:
        head = file.read(END_BYTES)
        file.seek(-END_BYTES, os.SEEK_END)
        ends = head + file.read(END_BYTES)
    return f"{_sha256(ends)} of the first and last MiB, {about.st_size} bytes, of {about.st_mtime_ns}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
