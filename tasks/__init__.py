"""Tasks: what models are asked, how prompts are built, how answers are scored. No torch here, and no model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from tasks import classification, generation, language_modeling, qa
from tasks.abilities import MODULES as ABILITIES
from tasks.base import Answer, Choice, Document, Task, TaskError, Text, available, task
from tasks.errors import suggest
from tasks.gym import from_gym
from tasks.lm_eval import from_lm_eval
from tasks.sources import from_hub

__all__ = [
    "SUITE",
    "TASKS",
    "Answer",
    "Choice",
    "Document",
    "Task",
    "TaskError",
    "Text",
    "available",
    "from_gym",
    "from_hub",
    "from_lm_eval",
    "load_task",
    "load_tasks",
    "task",
]

# Every task that one of these files defines is built in: a new one needs no line here.
TASKS: tuple[Task, ...] = tuple(
    found
    for module in (language_modeling, classification, qa, generation, *ABILITIES)
    for found in vars(module).values()
    if isinstance(found, Task) and found.file == Path(str(module.__file__))
)
SUITE = "suite"  # stands for all of them in a list of names


def load_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks of these names: one of this package, "suite" (all of it), "my_tasks.py" (all tasks of a file) or
    "my_tasks.py:name" (one).

    Raises TaskError for an unknown name, a file without tasks or that does not import, and two tasks of one name.
    """
    tasks = [found for name in names for found in _find(name)]
    _refuse_duplicates(tasks, "the list")
    return tasks


def load_task(name: str) -> Task:
    """The one task of this name, written as in `load_tasks`; a file that defines several needs ":name"."""
    found = _find(name)
    if len(found) > 1:
        raise TaskError(f"{name}: defines {len(found)} tasks; name one, as in {name}:{found[0].name}")
    return found[0]


def _find(name: str) -> list[Task]:
    path, _, wanted = name.rpartition(":") if ".py:" in name else (name, "", "")
    if name == SUITE:
        return list(TASKS)
    if not path.endswith(".py"):
        return [_named(name, TASKS, "task")]
    tasks = _tasks_of_file(Path(path))
    return [_named(wanted, tasks, f"{path}: task")] if wanted else tasks


def _named(name: str, tasks: Iterable[Task], what: str) -> Task:
    known = {task.name: task for task in tasks}
    if name not in known:
        raise TaskError(f"unknown {what} {name!r}{suggest(name, known)} Known: {', '.join(sorted(known))}")
    return known[name]


def _tasks_of_file(path: Path) -> list[Task]:
    if not path.is_file():
        raise TaskError(f"{path}: no such file; give a task's name, or a .py file that defines tasks")
    spec = importlib.util.spec_from_file_location(f"task_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up by name
    try:
        spec.loader.exec_module(module)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"{path}: does not import: {type(error).__name__}: {error}") from error
    found = [value for value in vars(module).values() if isinstance(value, Task)]
    tasks = [task for task in dict.fromkeys(found) if task.file.resolve() == path.resolve()]  # not those it imports
    if not tasks:
        raise TaskError(f"{path}: defines no task; decorate a function with @task(...) from tasks")
    _refuse_duplicates(tasks, str(path))
    return tasks


def _refuse_duplicates(tasks: list[Task], where: str) -> None:
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"{where} holds more than one task named {', '.join(map(repr, twice))}; names must differ")
