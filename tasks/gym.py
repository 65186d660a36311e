"""Tasks of reasoning-gym's procedural generators (the extra `gym`), one call each.

    chain = from_gym("chain_sum", template="{expression} =", shots=2, num_terms=[2, 3, 4], num_digits=[1, 2])

Every document is the first item of a generator with a seed of its own, drawn from the document's key: the package draws
item i from seed + i, so the items of neighbouring seeds are the same but for one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import inspect
import io
import string
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from tasks import identity, sources
from tasks.base import Task, level_name, task
from tasks.errors import TaskError, Unavailable, suggest
from tasks.outputs import Answer

PACKAGE = "reasoning-gym"
# In reasoning-gym 0.1.25, two processes with other hash seeds of Python drew other items from the same seeds (up to 60
# each): these go through the order of a set, or through random numbers that the seed does not govern.
UNSTABLE = (
    *("codeio", "intermediate_integration", "isomorphic_strings", "knight_swap", "list_functions"),
    *("polynomial_multiplication", "ransom_note", "word_ladder"),
)
# These read files when they are made (5 to 400 ms), and their items follow from `seed` whenever it is set.
READ_ONCE = (
    *("arc_agi", "caesar_cipher", "emoji_mystery", "figlet_font", "group_anagrams", "letter_counting"),
    *("letter_jumble", "n_queens", "rearc", "sentence_reordering", "spell_backward", "word_sequence_reversal"),
    "word_sorting",
)
OURS = ("seed", "size")  # in every configuration, and never the caller's
N_FROZEN = 2  # items of each level that the digest holds
# Some generators leave a few of their items without an answer (base_conversion: zero), others all of them.
_MAX_UNANSWERED = 8

Template = str | Callable[[Mapping[str, Any]], str]


def from_gym(
    generator: str,
    *,
    name: str | None = None,
    kind: str = "generation",
    ability: str = "",
    size: int | None = None,
    shots: int = 0,
    join: str = "\n",
    template: Template | None = None,
    stop: str | Sequence[str] | None = "\n",
    max_tokens: int | None = None,
    **levels: Any,
) -> Task:
    """A task whose documents a generator of reasoning-gym makes; the answer is free text, the reference its own.

    levels: the generator's parameters, or those its curriculum names ("num_terms" sets min_terms and max_terms, to one
        value or to a pair). A list or a range makes levels of difficulty, any other value is fixed. Further options of
        @task may stand among them (metrics=, train_levels=, ...), and go first where a parameter has such a name.
    name: by default the generator's. kind, ability, size, shots, join: as of @task.
    template: what is asked instead of the item's question, which is written for chat models: a format string over
        "question" and the item's metadata, or a function of the item (question, answer, metadata).
    stop: ends an answer; one that an answer holds is refused. max_tokens: by default enough for the answer in bytes.
    Answers count as right where they equal the reference. The generator's own score (`score_answer`) is not used: by
    default it gives part of a point to any text that holds the reference, less the longer the text is, so whoever
    rambles is above zero and a curve over sizes mixes length with ability. Where a generator accepts other answers than
    its own (countdown, jugs, ...) exact match is therefore a lower bound.
    The package is imported when documents are asked for; then an unknown generator, parameter or value is a TaskError.
    """
    if isinstance(template, str):
        try:
            list(string.Formatter().parse(template))
        except ValueError as error:
            raise TaskError(
                f"from_gym({generator!r}): the template {template!r} is no format string: {error}"
            ) from error
    elif template is not None and not inspect.isfunction(template):
        raise TaskError(
            f"from_gym({generator!r}): the template must be a format string or a function of the item, "
            f"got {type(template).__name__}"
        )
    options: dict[str, Any] = {
        given: value for given, value in levels.items() if given in inspect.signature(task).parameters
    }
    grid: dict[str, Any] = {
        level: tuple(values)
        for level, values in levels.items()
        if level not in options and isinstance(values, list | range)
    }
    for level in (level for level, values in grid.items() if not values):
        raise TaskError(
            f"from_gym({generator!r}): {level}=[] names no level; give the values to ask, as in {level}=[1, 2]"
        )
    fixed = {level: value for level, value in levels.items() if level not in options and level not in grid}

    kept: UserDict[str, Any] = UserDict()  # not a dict, which would count as a constant in the digest

    def draw(rng: np.random.Generator, **level: Any) -> Answer:
        # Below 2**32, which is what numpy's old generators take for a seed.
        seeds = (int(rng.integers(2**32)) for _ in range(_MAX_UNANSWERED))
        items = (_item(generator, {**fixed, **level}, seed, kept) for seed in seeds)
        item = next((item for item in items if _has_answer(item)), None)
        if item is None:
            raise TaskError(
                f"reasoning-gym's {generator} gives no answer to compare with: it judges answers by rules of its own; "
                "choose another generator"
            )
        return _answer(item, template, stop, max_tokens)

    draw.__doc__ = f"Items of reasoning-gym's generator {generator}."
    parameters = [inspect.Parameter(one, inspect.Parameter.POSITIONAL_OR_KEYWORD) for one in ("rng", *grid)]
    draw.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    arguments: dict[str, Any] = {"kind": kind, "ability": ability, "size": size, "shots": shots, "join": join}
    made = task(name or generator, **arguments, **options, **grid)(draw)
    as_made = {one.name: getattr(made, one.name) for one in dataclasses.fields(made)}
    as_made["file"] = identity.caller_file()
    return GymTask(**as_made, generator=generator, fixed=fixed, template=template)


@dataclass(frozen=True, kw_only=True, eq=False)
class GymTask(Task):
    """A task that `from_gym` built."""

    generator: str
    fixed: Mapping[str, Any]  # parameters that are the same at all levels
    template: Template | None = field(repr=False)

    @cached_property
    def rows(self) -> list[sources.Row]:
        """None, as of any procedural task. Asking for them is how it is found out whether a task can run here.

        Raises Unavailable without the package, and TaskError for a generator, a parameter or a value it does not have.
        """
        for level in self.levels:
            try:
                _configured(self.generator, {**self.fixed, **level}, seed=0)
            except TaskError as error:
                raise type(error)(f"task {self.name!r}: {error}") from error
        return []

    @cached_property
    def digest(self) -> str:
        """As of any task, and besides: the package's version, the template's code and the first items of every level.

        A version that generates something else is another task, even where it goes by the same number.
        """
        base = vars(Task)["digest"].func(self)
        items = [
            self._call(identity.generator(self.generator, level_name(level), i), level, f"item {i}")
            for level in self.levels
            for i in range(N_FROZEN)
        ]
        return identity.digest_of(
            base, importlib.metadata.version(PACKAGE), dict(self.fixed), self._template_code(), items
        )

    def _template_code(self) -> str | None:
        if not callable(self.template):
            return self.template
        try:
            return identity.code_text(self.template)
        except OSError as error:
            raise TaskError(
                f"task {self.name!r}: the source of its template cannot be read ({error}); define it in a file"
            ) from error


def _item(generator: str, parameters: Mapping[str, Any], seed: int, kept: UserDict[str, Any]) -> dict[str, Any]:
    """The first item of a generator: its question, its answer and its metadata. `kept` are those made before."""
    dataset, configuration = _configured(generator, parameters, seed=seed)
    key = repr(sorted(parameters.items()))
    with contextlib.redirect_stdout(io.StringIO()):  # bf prints a dot for every item
        if generator not in READ_ONCE:
            return dataset(configuration)[0]
        if key not in kept:
            kept[key] = dataset(configuration)
        kept[key].seed = seed
        return kept[key][0]


def _has_answer(item: Mapping[str, Any]) -> bool:
    return isinstance(item["answer"], str) and bool(item["answer"].strip())


def _answer(
    item: Mapping[str, Any],
    template: Template | None,
    stop: str | Sequence[str] | None,
    max_tokens: int | None,
) -> Answer:
    reference = item["answer"].strip()
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    for mark in stops:
        if mark and mark in reference:
            raise TaskError(
                f"the answer {reference[:40]!r} holds the stop {mark!r}, so no model could give it; "
                "give another, as in stop='\\n\\n', join='\\n\\n'"
            )
    if max_tokens is None:
        # No token is shorter than a byte, the space before the answer and the stop after it included.
        max_tokens = max(16, len(f" {reference}{max(stops, key=len, default='.')}".encode()))
    return Answer(_prompt(item, template), reference, stop, max_tokens)


def _prompt(item: Mapping[str, Any], template: Template | None) -> str:
    if callable(template):
        return template(item)
    fields = {**item["metadata"], "question": item["question"].rstrip()}
    if template is None:
        return fields["question"]
    try:
        return template.format_map(fields)
    except KeyError as error:
        unknown = str(error.args[0])
        raise TaskError(
            f"the template {template!r} names an unknown field {unknown!r}{suggest(unknown, fields)} "
            f"Known: {', '.join(sorted(fields))}"
        ) from error


def _configured(generator: str, parameters: Mapping[str, Any], *, seed: int) -> tuple[Callable[[Any], Any], Any]:
    """The class of a generator and its configuration for one item.

    Raises Unavailable without the package, TaskError for what it does not have or does not accept.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise Unavailable(
            f"the generator {generator!r} is one of the package {PACKAGE}; pip install 'emergence-harness[gym]'"
        ) from error
    if generator not in DATASETS:
        raise TaskError(
            f"unknown generator {generator!r}{suggest(generator, DATASETS)} Known: {', '.join(sorted(DATASETS))}"
        )
    if generator in UNSTABLE:
        raise TaskError(
            f"reasoning-gym's {generator} makes other items of the same seed in another process, so two models would "
            "not be asked the same; choose another generator"
        )
    dataset, configuration = DATASETS[generator]
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        targets = _targets(generator)
        if name not in targets:
            raise TaskError(
                f"the generator {generator} has no parameter {name!r}{suggest(name, targets)} "
                f"Known: {', '.join(sorted(targets))}"
            )
        fields = targets[name]
        pair = value if len(fields) == 2 and isinstance(value, list | tuple) else [value] * len(fields)
        if len(pair) != len(fields):
            raise TaskError(
                f"the generator {generator}: {name}={value!r} must be one value or a pair, lowest and highest"
            )
        for target, part in zip(fields, pair, strict=True):
            if target in values:
                raise TaskError(f"the generator {generator}: {name!r} sets {target!r} again; give only one of the two")
            values[target] = part
    try:
        configured = configuration(**values, seed=seed, size=1)
        configured.validate()
    except Exception as error:  # assertions, mostly, but a value of the wrong type fails anyhow
        given = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        raise TaskError(
            f"the generator {generator} does not accept {given or 'its defaults'}: {error or type(error).__name__}"
        ) from error
    return dataset, configured


@cache
def _targets(generator: str) -> dict[str, tuple[str, ...]]:
    """Parameter -> the fields of the configuration it sets: itself, or those its curriculum says."""
    from reasoning_gym.factory import CURRICULA, DATASETS

    own = [one.name for one in dataclasses.fields(DATASETS[generator][1]) if one.name not in OURS]
    attributes = CURRICULA[generator]().attributes if generator in CURRICULA else {}
    named: dict[str, tuple[str, ...]] = {
        name: (one.field_name,) if hasattr(one, "field_name") else (one.lower_field_name, one.upper_field_name)
        for name, one in attributes.items()
        if name not in OURS
    }
    return named | {name: (name,) for name in own}
