"""The contract of a task: one decorated function that returns a Choice, an Answer or a Text.

    @task("addition", kind="generation", shots=3, digits=[1, 2, 3])
    def addition(rng, digits):
        a, b = rng.integers(10 ** (digits - 1), 10**digits, size=2)
        return Answer(f"{a} + {b} =", str(a + b))

A first parameter `rng` makes a procedural task, `row` one that reads data; further parameters are the difficulty grid.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tasks import identity, prompting, sources
from tasks.errors import TaskError, Unavailable, suggest
from tasks.metrics import DEFAULTS, HEADLINES, METRICS, signature
from tasks.outputs import OUTPUTS, Answer, Choice, Doc, Document, Text
from tasks.sources import Data
from tasks.text import LANGUAGES, NORMALIZATIONS

KINDS = ("language modeling", "classification", "qa", "generation")
# What the literature on large models says emerges; every built-in task names one, a task of yours may name another.
ABILITIES = ("text generation", "knowledge integration", "complex patterns", "generalisation", "adaptation")
ROLES = ("probe", "control")
DEFAULT_SIZE = 500  # evaluation documents per level of a procedural task
MAX_DRAWS_PER_DOCUMENT = 4  # repeated questions are skipped; a small task gives fewer documents instead of searching on
FORMAT = 2  # raise when this package renders or draws documents differently


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A task as `@task` builds it; the fields are that decorator's arguments."""

    name: str
    kind: str
    ability: str
    role: str
    grid: Mapping[str, tuple[Any, ...]]
    function: Callable[..., Doc]
    size: int | None
    shots: int
    join: str
    delimiter: str
    data: Data | None
    examples: Data | None
    fixed_shots: bool
    preamble: str
    cluster: str | None
    language: str
    normalize: str
    asked_metrics: tuple[str, ...]
    asked_metric: str | None
    shared: bool
    balanced: bool
    train: Callable[[np.random.Generator, int], str] | None
    train_grid: Mapping[str, tuple[Any, ...]]
    asked_only: bool
    shortcut: Callable[..., Mapping[str, float]] | None
    version: int
    file: Path = field(repr=False)

    def __post_init__(self) -> None:
        def one_of(given: str, what: str, known: Collection[str]) -> None:
            if given not in known:
                raise TaskError(
                    f"task {self.name!r}: unknown {what} {given!r}{suggest(given, known)} Known: {', '.join(known)}"
                )

        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise TaskError(f"task name {self.name!r}: use letters, digits, '-' and '_' (it names files and columns)")
        one_of(self.kind, "kind", KINDS)
        one_of(self.role, "role", ROLES)
        one_of(self.language, "language", LANGUAGES)
        one_of(self.normalize, "normalization", NORMALIZATIONS)
        for metric in self.asked_metrics:
            one_of(metric, "metric", METRICS)
        if self.asked_metric and METRICS[self.asked_metric].descriptive:
            raise TaskError(
                f"task {self.name!r}: metric {self.asked_metric!r} describes answers and measures no ability; list it "
                "under metrics=, and give another headline"
            )
        if self.shots < 0 or (self.size is not None and self.size < 1):
            raise TaskError(
                f"task {self.name!r}: shots must be at least 0 and size at least 1, "
                f"got shots={self.shots}, size={self.size}"
            )
        first, *rest = list(inspect.signature(self.function).parameters) or [""]
        if first != ("rng" if self.data is None else "row"):
            raise TaskError(
                f"task {self.name!r}: the function's first parameter must be 'rng' (procedural, without data=) "
                f"or 'row' (with data=), got {first!r}"
            )
        for level in self.train_grid:
            one_of(level, "level in train_levels", self.grid)
        if set(rest) != set(self.grid) or not all((*self.grid.values(), *self.train_grid.values())):
            raise TaskError(
                f"task {self.name!r}: every further parameter of the function needs a list of values in @task(...), "
                f"and every list a parameter; parameters: {', '.join(rest) or 'none'}; "
                f"lists: {', '.join(self.grid) or 'none'}"
            )
        if self.data is None and (self.examples is not None or self.cluster is not None):
            raise TaskError(f"task {self.name!r}: examples= and cluster= need rows: give data=, and a function of row")
        if self.asked_only and (self.train is not None or self.train_grid):
            raise TaskError(
                f"task {self.name!r}: asked_only=True writes no training text; leave train and train_levels"
            )
        if self.balanced and (self.data is not None or self.output != "Choice"):
            raise TaskError(f"task {self.name!r}: balanced=True needs a function of rng that returns Choice")

    @property
    def source(self) -> str:
        """The file that defines the task, with its folder: "tasks/qa.py"."""
        return f"{self.file.parent.name}/{self.file.name}"

    @property
    def description(self) -> str:
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def levels(self) -> list[dict[str, Any]]:
        """Every combination of the difficulty grid; one empty level without a grid."""
        return _combinations(self.grid)

    @cached_property
    def train_levels(self) -> list[dict[str, Any]]:
        """Every combination of the grid that training rows are drawn from."""
        return _combinations({**self.grid, **self.train_grid})

    @cached_property
    def output(self) -> str:
        """ "Choice", "Answer" or "Text": as the function is annotated, else as it returns."""
        annotation = self.function.__annotations__.get("return", "")
        name = (annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")).rpartition(".")[2]
        if name in OUTPUTS:
            return name
        if self.rows:
            return self._call(self.rows[0], self.levels[0], self.rows[0].where).output
        return self._call(identity.generator(self.name, "output"), self.levels[0], "its first draw").output

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics scored: those of the output kind and those the task asked for.

        Raises TaskError where one asked for does not score this kind of output.
        """
        for name in self.asked_metrics:
            if self.output not in METRICS[name].outputs:
                raise TaskError(
                    f"task {self.name!r}: metric {name!r} scores {' and '.join(METRICS[name].outputs)}, "
                    f"but its function returns {self.output}"
                )
        return tuple(dict.fromkeys((*DEFAULTS[self.output], *self.asked_metrics)))

    @property
    def metric(self) -> str:
        """Name of the headline metric."""
        return self.asked_metric or HEADLINES[self.output]

    def needs(self, what: str) -> bool:
        """Whether one of the metrics needs this asked besides ("alone", "judge"; see Metric.needs)."""
        return any(METRICS[name].needs == what for name in self.metrics)

    @cached_property
    def rows(self) -> list[sources.Row]:
        """The data of a task that reads some, in the order of the file; empty for a procedural task."""
        return [] if self.data is None else sources.read_rows(self.data, self.name, self.file.parent)

    @cached_property
    def example_rows(self) -> list[sources.Row]:
        """The rows that worked examples are made of: those of `examples`, else the task's own."""
        if self.examples is None:
            return self.rows
        return sources.read_rows(self.examples, f"{self.name}, examples", self.file.parent)

    @cached_property
    def stem_digest(self) -> str:
        """Names the task without its levels: its code, its options and its data. Documents and shots are drawn by it,
        so that a level that is added changes no document of the others."""
        try:
            code = [identity.code_text(function) for function in (self.function, self.train) if function is not None]
        except OSError as error:
            raise TaskError(f"task {self.name!r}: its source cannot be read ({error}); define it in a file") from error
        # Options that were added later count where they are used: adding one changes no other task's digest.
        later = {
            "examples": [dict(row) for row in self.example_rows] if self.examples is not None else None,
            "fixed_shots": self.fixed_shots,
            "preamble": self.preamble,
            "cluster": self.cluster,  # kept with the documents, not with the scores
        }
        used = {name: value for name, value in later.items() if value}
        return identity.digest_of(
            FORMAT,
            self.name,
            self.version,
            (self.shots, self.join, self.delimiter, self.shared, self.balanced),
            code,
            [dict(row) for row in self.rows],
            *([used] if used else []),
        )

    @cached_property
    def digest(self) -> str:
        """Names what the task asks: its stem and its levels. Neither size nor scoring is part of it, but the language
        of texts is: which of their words were right is found out when they are asked."""
        words = [self.language] if self.language != "en" and self.output == "Text" else []
        levels = {name: list(values) for name, values in self.grid.items()}
        return identity.digest_of(self.stem_digest, levels, *words)

    @cached_property
    def training_digest(self) -> str:
        """Names what the task writes into training text: its stem, and the levels where those decide the text."""
        return identity.digest_of(self.stem_digest, [] if self.train is not None else self.train_levels)

    @property
    def trains(self) -> bool:
        """Whether the task can write training text."""
        return not self.asked_only and (self.train is not None or self.data is None or self.shared)

    def shortcuts(self) -> dict[str, dict[str, float]]:
        """Per level, the best score of a solver without the ability, where the task declares one."""
        if self.shortcut is None:
            return {}
        return {level_name(level): dict(self.shortcut(**level)) for level in self.levels}

    def summary(self) -> dict[str, Any]:
        """What a results folder records of the task, ready for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "ability": self.ability,
            "role": self.role,
            "levels": self.levels,
            "metrics": list(self.metrics),
            "metric": self.metric,
            "language": self.language,
            "normalize": self.normalize,
            "signatures": {name: text for name in self.metrics if (text := signature(name, self.language))},
            "digest": self.digest,
            "description": self.description,
            "source": self.source,
            "shortcut": self.shortcuts(),
        }

    def documents(self, *, limit: int | None = None, seed: int = 0) -> list[Document]:
        """The evaluation documents, level after level; at most `limit` (default: the task's size) of each level.

        Document i of a level is a function of (stem digest, level, seed, i) alone, so a lower limit gives the first
        documents of a higher one. Repetitions are left out: a level with few distinct documents gives fewer.
        Raises TaskError where the function is impure, fails, or finds no document that the split allows.
        """
        limit = self.size if limit is None else limit
        return [document for level in self.levels for document in self._level_documents(level, limit, seed)]

    def training_text(self, rng: np.random.Generator, *, chars: int) -> str:
        """One training row of at least `chars` characters: worked examples of random levels, or the task's own `train`.

        No evaluation document is in it unless the task is `shared`. Raises TaskError for a task that only evaluates.
        """
        if self.train is not None:
            return self.train(rng, chars)
        if self.asked_only:
            raise TaskError(f"task {self.name!r}: is asked only (asked_only=True) and writes no training text")
        if self.data is not None and not self.shared:
            raise TaskError(
                f"task {self.name!r}: all rows of its data are evaluation documents; give it train=, or shared=True"
            )
        shots: list[str] = []
        length = -len(self.join)
        while length < chars:
            level = self.train_levels[int(rng.random() * len(self.train_levels))]
            shots.append(prompting.with_answer(self._draw(rng, level, "train"), self.delimiter))
            length += len(shots[-1]) + len(self.join)
        return self.join.join(shots)

    def _level_documents(self, level: dict[str, Any], limit: int | None, seed: int) -> Iterator[Document]:
        seen: set[Doc] = set()
        for doc_id, doc in self._candidates(level, limit, seed):
            if limit is not None and len(seen) >= limit:
                return
            if self.balanced and isinstance(doc, Choice) and doc.answer != len(seen) % len(doc.choices):
                continue  # a repetition was left out, and with it the turn of its answer
            if doc not in seen:
                seen.add(doc)
                yield self._document(doc_id, doc, level, seed)

    def _candidates(self, level: dict[str, Any], limit: int | None, seed: int) -> Iterator[tuple[int, Doc]]:
        if self.data is not None:
            # In an order of hashes, so that a limit takes a fair sample of a file sorted by topic or label.
            for n, i in enumerate(sorted(range(len(self.rows)), key=lambda i: identity.digest_of(self.name, seed, i))):
                doc = self._call(self.rows[i], level, self.rows[i].where)
                if n < 3 and doc != self._call(self.rows[i], level, self.rows[i].where):
                    raise TaskError(
                        f"{self.rows[i].where}: task {self.name!r}: its document differs when it is made twice; make "
                        "it of the row alone"
                    )
                yield i, doc
            return
        for i in range(MAX_DRAWS_PER_DOCUMENT * (limit or DEFAULT_SIZE)):
            key = (self.stem_digest, "evaluation", level_name(level), seed, i)
            doc = self._draw(identity.generator(*key), level, "evaluation", number=i)
            if i < 3 and doc != self._draw(identity.generator(*key), level, "evaluation", number=i):
                raise TaskError(
                    f"task {self.name!r} ({self.source}): document {i} differs when drawn twice; "
                    "draw all randomness from the rng that is passed in"
                )
            yield i, doc

    def _draw(
        self,
        rng: np.random.Generator,
        level: dict[str, Any],
        split: str,
        *,
        number: int | None = None,
        source: Any = None,
    ) -> Doc:
        """The first draw that belongs to the split, is not of `source` and, for a balanced task, has the answer due."""
        if self.data is not None:
            rows = self.rows if split == "evaluation" else self.example_rows
            for _ in range(prompting.MAX_REDRAWS):
                row = rows[int(rng.integers(len(rows)))]
                if not self._is_of(source, row):
                    return self._call(row, level, row.where)
            raise TaskError(
                f"task {self.name!r}: no example is of another {self.cluster} than {source!r}; give examples="
            )
        for _ in range(prompting.MAX_REDRAWS):
            doc = self._call(rng, level, split)
            if not self.shared and identity.held_out(doc.content) != (split == "evaluation"):
                continue
            if self.balanced and number is not None and isinstance(doc, Choice):
                due = number % len(doc.choices)
                if doc.answer != due:
                    continue
            return doc
        raise TaskError(
            f"task {self.name!r} ({self.source}){' ' * bool(level)}{level_name(level)}: no {split} document in "
            f"{prompting.MAX_REDRAWS} draws; it has too few distinct documents to split "
            "(shared=True lets both splits use the same ones)"
        )

    def _call(self, argument: Any, level: Mapping[str, Any], where: str) -> Doc:
        try:
            doc = self.function(argument, **level)
        except TaskError as error:
            place = f"{where}: " if self.data is not None else ""
            raise TaskError(f"{place}task {self.name!r}: {error}") from error
        except Exception as error:
            raise TaskError(
                f"task {self.name!r} ({self.source}): its function failed on {where}"
                f"{' ' * bool(level)}{dict(level) or ''}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(doc, Choice | Answer | Text):
            raise TaskError(
                f"task {self.name!r} ({self.source}): its function must return a Choice, an Answer or a Text, "
                f"got {type(doc).__name__}"
            )
        return doc

    def _document(self, doc_id: int, doc: Doc, level: dict[str, Any], seed: int) -> Document:
        if doc.output != self.output:
            raise TaskError(
                f"task {self.name!r} ({self.source}): all documents must be of one kind of output; "
                f"document {doc_id} is {doc.output}, not {self.output}"
            )
        drawn = self._shots(doc, level, (self.stem_digest, level_name(level), seed), doc_id)
        if len(drawn) < self.shots:
            raise TaskError(
                f"task {self.name!r}: shots={self.shots}, but only {len(drawn)} other documents are to be had"
            )
        shots = tuple(prompting.with_answer(shot, self.delimiter) for shot in drawn)
        prompt = prompting.render(shots, doc.prompt_text, join=self.join, preamble=self.preamble)
        continuations: Sequence[str] = (
            (doc.text,) if isinstance(doc, Text) else (doc.choices if isinstance(doc, Choice) else doc.references)
        )
        delimiter = "" if isinstance(doc, Text) else self.delimiter
        return Document(
            task=self.name,
            level=level_name(level),
            doc_id=doc_id,
            kind=self.kind,
            prompt=prompt,
            continuations=tuple(delimiter + continuation for continuation in continuations),
            answer=doc.gold_index if isinstance(doc, Choice) else None,
            stop=tuple(doc.stop or ()) if isinstance(doc, Answer) else (),
            max_tokens=doc.max_tokens if isinstance(doc, Answer) else None,
            chance=1 / len(doc.choices) if isinstance(doc, Choice) else (0.0 if isinstance(doc, Answer) else None),
            prompt_digest=prompting.prompt_digest(prompt),
            shots=shots,
            join=self.join,
            preamble=self.preamble,
            cluster=self._cluster(doc_id),
            doc=doc,
        )

    def _cluster(self, doc_id: int) -> str | None:
        if self.cluster is None:
            return None
        row = self.rows[doc_id]
        try:
            value = row[self.cluster]
            # A row that names no source has one of its own.
            return str(value) if _is_known(value) else f"row {doc_id}"
        except TaskError as error:
            raise TaskError(f"{row.where}: task {self.name!r}: {error}") from error

    def _shots(self, doc: Doc, level: dict[str, Any], key: tuple[object, ...], doc_id: int) -> list[Doc]:
        # An example from the document's own source could state its answer.
        source = self.rows[doc_id].get(self.cluster) if self.cluster else None
        if self.fixed_shots and self.examples is not None:  # the author chose them, and their order
            listed = (self._call(row, level, row.where) for row in self.example_rows if not self._is_of(source, row))
            return list(itertools.islice((shot for shot in listed if shot.content != doc.content), self.shots))

        def draw(rng: np.random.Generator) -> Doc:
            return self._draw(rng, level, "train", source=source)

        own = () if self.fixed_shots else (doc_id,)
        return prompting.draw_shots(doc, self.shots, (*key, *own), draw)

    def _is_of(self, source: Any, row: Mapping[str, Any]) -> bool:
        return self.cluster is not None and _is_known(source) and row.get(self.cluster) == source


def task(
    name: str,
    *,
    kind: str,
    ability: str = "",
    role: str = "probe",
    size: int | None = None,
    shots: int = 0,
    data: Data | None = None,
    examples: Data | None = None,
    fixed_shots: bool = False,
    preamble: str = "",
    cluster: str | None = None,
    language: str = "en",
    normalize: str = "strip",
    metrics: Sequence[str] = (),
    metric: str | None = None,
    join: str = "\n",
    delimiter: str = " ",
    shared: bool = False,
    balanced: bool = False,
    train: Callable[[np.random.Generator, int], str] | None = None,
    train_levels: Mapping[str, Sequence[Any]] | None = None,
    asked_only: bool = False,
    shortcut: Callable[..., Mapping[str, float]] | None = None,
    version: int = 1,
    **levels: Sequence[Any],
) -> Callable[[Callable[..., Doc]], Task]:
    """Turn a function into a Task. Remaining keyword arguments are the difficulty grid, `name=[values]`.

    size: evaluation documents per level (default 500; of a data file, all rows).
    data: a .jsonl, .json, .csv, .tsv (also .gz) or .parquet file beside the task's own file, a list of rows, or a
        function that returns them (such as `from_hub`); the first parameter is then `row`.
    examples: where the rows of the worked examples come from; by default the data itself.
    fixed_shots: all documents get the same worked examples, the first of `examples` where those are given. A shared
        beginning is read once for all of them.
    preamble: stands before the worked examples, word for word.
    cluster: the field of a row that names its source; documents of one source are not independent.
    language: "en" or "zh": what counts as a word when text is scored.
    normalize: what is made equal before answers are compared: "strip" (white space at the ends), "squad" (case,
        punctuation, articles and white space) or "zh" (width, case, punctuation, spaces between characters).
    metrics, metric: scored besides the usual ones of the output kind; the headline among them.
    join, delimiter: between worked examples; between a prompt and its answer.
    shared: training and evaluation may use the same documents, for tasks that ask what was remembered.
    balanced: document i of a Choice task has answer i modulo the number of choices, so a constant answer scores chance.
    train: (rng, chars) -> one training row of at least that many characters, for episodes that examples cannot build.
    train_levels: the values of the grid that training examples are drawn from, where more are trained than asked.
    asked_only: no training text is ever made of this task, as where the question is what carries over to it.
    shortcut: (**level) -> {metric: best score of a solver without the ability}; verdicts start from there.
    version: raise it when the documents change in a way that the function's source does not show.
    Raises TaskError for an argument that cannot work.
    """

    for option, values in levels.items():
        if isinstance(values, str | bytes | bool) or not isinstance(values, Iterable):
            known = list(inspect.signature(task).parameters)[1:-1]
            raise TaskError(
                f"task {name!r}: {option}={values!r} is neither an option{suggest(option, known)[:-1]} nor a list of "
                f"values of a difficulty level; options: {', '.join(known)}"
            )

    def decorate(function: Callable[..., Doc]) -> Task:
        return Task(
            name=name,
            kind=kind,
            ability=ability,
            role=role,
            grid={level: tuple(values) for level, values in levels.items()},
            function=function,
            size=DEFAULT_SIZE if size is None and data is None else size,
            shots=shots,
            join=join,
            delimiter=delimiter,
            data=data,
            examples=examples,
            fixed_shots=fixed_shots,
            preamble=preamble,
            cluster=cluster,
            language=language,
            normalize=normalize,
            asked_metrics=(*metrics, *([metric] if metric else [])),
            asked_metric=metric,
            shared=shared,
            balanced=balanced,
            train=train,
            train_grid={level: tuple(values) for level, values in (train_levels or {}).items()},
            asked_only=asked_only,
            shortcut=shortcut,
            version=version,
            file=Path(inspect.unwrap(function).__code__.co_filename),
        )

    return decorate


def _is_known(source: Any) -> bool:
    return source is not None and source == source and source != ""  # NaN is unequal to itself


def _combinations(grid: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def level_name(level: Mapping[str, Any]) -> str:
    """ "digits=2,base=10" for a level, "" for the only level of a task without a grid."""
    return ",".join(f"{name}={value}" for name, value in level.items())


def available(task: Task) -> str | None:
    """Why the task cannot run here (a missing package and how to install it), or None where it can."""
    try:
        _ = task.rows
    except Unavailable as error:
        return str(error)
    return None
