"""Write a working task and its test, as a start for one's own."""

from __future__ import annotations

import json
import keyword
from itertools import product
from pathlib import Path
from typing import Any

from harness.store import StoreError
from tasks import TASKS, TaskError
from tasks.base import KINDS
from tasks.errors import suggest

TEMPLATES = Path(__file__).parent / "templates"
ORIGINS = ("rng", "jsonl")
_TAKEN = ("Answer", "Choice", "Path", "Text", "json", "np", "re", "task")  # names that the written files use


def new_task(name: str, *, kind: str = "generation", origin: str = "rng", folder: str | Path = ".") -> list[Path]:
    """Write NAME.py and test_NAME.py into `folder`, with NAME.jsonl where `origin` is "jsonl"; return their paths.

    Raises TaskError for a name or kind that cannot be, StoreError where a file is already there."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not (name.isidentifier() and name.isascii() and name[0].isalpha()) or keyword.iskeyword(name):
        raise TaskError(
            f"task name {name!r}: use letters, digits and '_', a letter first (it names a function, a file and columns)"
        )
    if name in {task.name for task in TASKS} or name in _TAKEN:
        raise TaskError(f"task name {name!r}: taken, by a built-in task or by what its file imports; choose another")
    for given, what, known in ((kind, "--kind", KINDS), (origin, "--from", ORIGINS)):
        if given not in known:
            raise TaskError(f"{what} {given!r} is not known{suggest(given, known)} Known: {', '.join(known)}")
    folder = Path(folder)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    values = {"name": name, "kind": kind, "origin": origin}
    contents = {
        folder / f"{name}.py": environment.get_template("task.py.j2").render(values),
        folder / f"test_{name}.py": environment.get_template("test_task.py.j2").render(values),
    }
    if origin == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in example_rows(kind))
        contents[folder / f"{name}.jsonl"] = "".join(f"{line}\n" for line in lines)
    if there := [str(path) for path in contents if path.exists()]:
        raise StoreError(f"{', '.join(there)}: already there, and never overwritten; choose another name or --dir")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in contents.items():
        path.write_text(text, encoding="utf-8")
    return list(contents)


_CAPITALS = (
    *(("Austria", "Vienna"), ("Chile", "Santiago"), ("Egypt", "Cairo"), ("France", "Paris"), ("Greece", "Athens")),
    *(("Hungary", "Budapest"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Kenya", "Nairobi"), ("Norway", "Oslo")),
    *(("Peru", "Lima"), ("Spain", "Madrid")),
)
_PLURALS = (
    *(("box", "boxes"), ("cat", "cats"), ("child", "children"), ("city", "cities"), ("dish", "dishes")),
    *(("foot", "feet"), ("goose", "geese"), ("leaf", "leaves"), ("mouse", "mice"), ("tree", "trees")),
    *(("wolf", "wolves"), ("woman", "women")),
)
_THINGS = ("bread", "film", "garden", "hotel", "soup", "walk")
_MOODS = {"good": ("lovely", "superb"), "bad": ("awful", "dreary")}
_TEXTS = (
    "The tide came in slowly and covered the stones one by one.",
    "She counted the lamps along the street until the fog hid the last of them.",
    "A kettle sang in the kitchen while rain ran down the window.",
    "Nobody had opened the green door since the winter of the great snow.",
    "Every morning the baker set one loaf aside for the birds.",
    "The map showed a lake where the travellers found only sand.",
    "He wrote the letter twice and sent neither of the two.",
    "Two foxes crossed the empty field and stopped to listen.",
)


def example_rows(kind: str) -> list[dict[str, Any]]:
    """A few rows of the shape that the written task reads; answers are spread evenly."""
    if kind == "classification":
        moods = [(word, label) for label, words in _MOODS.items() for word in words]
        return [{"text": f"The {t} was {word}.", "label": label} for t, (word, label) in product(_THINGS, moods)]
    if kind == "qa":
        rows = []
        n = len(_CAPITALS)
        for i, (country, capital) in enumerate(_CAPITALS):
            choices = [_CAPITALS[(i + step) % n][1] for step in (1, 4, 7)]
            choices.insert(i % 4, capital)  # as often at each place
            rows.append({"question": f"What is the capital of {country}?", "choices": choices, "answer": capital})
        return rows
    if kind == "generation":
        return [{"question": f"plural of {one}", "answers": [many]} for one, many in _PLURALS]
    return [{"text": text} for text in _TEXTS]
