"""What makes a task and its documents the same ones again: content hashes, keyed random generators, source digests."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np

HELD_OUT_SHARE = 8  # one document in this many is kept for evaluation


def digest_of(*parts: object) -> str:
    """32 hexadecimal digits that name these parts; their order and their boundaries count."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def generator(*parts: object) -> np.random.Generator:
    """A random generator of its own for every key: keys that differ in one part share nothing."""
    return np.random.default_rng(int(digest_of(*parts), 16))


def held_out(content: str) -> bool:
    """Whether a procedural document of this text is kept for evaluation.

    A function of the text alone, so training and evaluation stay disjoint whatever seeds drew them.
    """
    return hashlib.blake2b(content.encode(), digest_size=1).digest()[0] % HELD_OUT_SHARE == 0


def code_text(function: Callable[..., Any]) -> str:
    """The source of a function and of the functions, classes and constants it uses from its own folder; of a probe in a
    folder of this package, also from the package.

    Decorators, docstrings, blank lines and whole-line comments are left out: none of them changes what is computed.
    Names reached through a module (`module.NAME`) are not followed.
    Raises OSError where the source cannot be read (a function typed at a prompt).
    """
    folder = Path(inspect.unwrap(function).__code__.co_filename).parent
    home = Path(__file__).parent
    parts: dict[str, str] = {}
    _collect(inspect.unwrap(function), {folder, home} if home in folder.parents else {folder}, parts)
    return "\n".join(parts[name] for name in sorted(parts))


def _collect(function: FunctionType | Callable[..., Any], own: set[Path], parts: dict[str, str]) -> None:
    label = f"{function.__module__}.{function.__qualname__}"
    if label in parts:
        return
    parts[label] = _bare_source(function)
    scope = inspect.getclosurevars(function)
    visible = {**function.__globals__, **scope.nonlocals}
    for name in sorted(_names(function.__code__) | set(scope.nonlocals)):
        value = visible.get(name)
        used = inspect.unwrap(value) if callable(value) else value
        if isinstance(used, FunctionType):
            if Path(used.__code__.co_filename).parent in own:
                _collect(used, own, parts)
        elif isinstance(used, type):
            if not used.__module__.startswith("tasks.") and _folder_of(used) in own:
                parts[f"{used.__module__}.{used.__qualname__}"] = textwrap.dedent(inspect.getsource(used))
        elif isinstance(used, re.Pattern | np.ndarray | str | int | float | tuple | list | dict | set | frozenset):
            parts[f"{label}:{name}"] = f"{name} = {_constant_text(used)}"


def _folder_of(used: type) -> Path | None:
    try:
        return Path(inspect.getfile(used)).parent
    except (OSError, TypeError):  # built in
        return None


def _constant_text(value: object) -> str:
    """A text of a constant that is the same in every process: no memory address, no order of a set."""
    if isinstance(value, re.Pattern):
        return f"re.compile({value.pattern!r}, {value.flags})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {_constant_text(value.tolist())}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_constant_text(key)}: {_constant_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_constant_text, value))}]"
    if isinstance(value, set | frozenset):
        return f"set({sorted(map(_constant_text, value))})"
    if isinstance(value, FunctionType):
        return _bare_source(value)
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__qualname__


def _bare_source(function: Any) -> str:
    text = textwrap.dedent(inspect.getsource(function))
    try:
        node = ast.parse(text).body[0]
    except SyntaxError:  # a lambda inside a call: its lines do not parse alone
        return text
    lines = text.splitlines()
    if isinstance(node, ast.FunctionDef):
        if ast.get_docstring(node) is not None:
            quoted = node.body[0]
            lines[quoted.lineno - 1 : quoted.end_lineno] = []
        lines = lines[node.lineno - 1 :]
    return "\n".join(line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _names(code: CodeType) -> set[str]:
    return set(code.co_names) | {name for inner in _inner_code(code) for name in _names(inner)}


def _inner_code(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))


def caller_file() -> Path:
    """The file of the nearest caller outside this package: whose task it is that a function of this package builds."""
    home = Path(__file__).parent
    frames = (Path(info.filename) for info in inspect.stack(context=0))
    return next((path for path in frames if home not in path.parents), home / "__main__.py")
