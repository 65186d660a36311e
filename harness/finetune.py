"""Tasks that a model is tuned for before it is asked: one for each method, with a level for each number of examples.

A tuned task asks the documents of the task it is made of, all levels together and without worked examples. What a model
learns from are training documents of the same task: disjoint from those asked, as many of each answer as can be, and
drawn so that more examples hold all of the fewer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.ask import Question, TaskToAsk, answer, questions_of
from harness.store import AS_TRAINED, SAMPLES, documents_path, samples_path, write_table
from tasks import identity, prompting
from tasks.base import Document, Task, TaskError, level_name
from tasks.outputs import Choice

if TYPE_CHECKING:  # a plan is made without torch
    from models.finetune import Example, FinetuneSpec, Tuned
    from models.spec import ModelSpec

METRICS = ("acc", "brier", "logloss", "margin")
_MAX_DRAWS = 400  # for one example that is new and has the answer due
_FORMAT = 2  # raise when examples are drawn, or models tuned, differently


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedTask(Task):
    """A task of choices after tuning by one method."""

    base: Task
    method: str
    recipe: dict[str, Any] = field(repr=False)  # fields of models.finetune.FinetuneSpec beside method and seed

    @property
    def description(self) -> str:
        return f"{self.base.name} after tuning on labelled examples ({self.method})."

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS

    @property
    def stem_digest(self) -> str:
        base, recipe = (self.base.digest, self.base.train_levels), dict(sorted(self.recipe.items()))
        return identity.digest_of(_FORMAT, self.name, *base, self.method, recipe, self.size)

    @property
    def trains(self) -> bool:
        return False

    def shortcuts(self) -> dict[str, dict[str, float]]:
        """Of the documents of all levels together, the mean of the base's, where every level has one."""
        of_levels = list(self.base.shortcuts().values())
        names = set.intersection(*map(set, of_levels)) & set(METRICS) if of_levels else set()
        means = {name: float(np.mean([found[name] for found in of_levels])) for name in sorted(names)}
        return {level_name(level): means for level in self.levels} if means else {}

    def summary(self) -> dict[str, Any]:
        return super().summary() | {"tuned": {"task": self.base.name, "method": self.method, **self.recipe}}

    def documents(self, *, limit: int | None = None, seed: int = 0) -> list[Document]:
        """The documents of the base, the same at every level: `limit` or the task's size, whichever is less, in
        equal parts of the base's levels (rounded up)."""
        most = min(filter(None, (limit, self.size)))
        asked = self.base.documents(limit=math.ceil(most / len(self.base.levels)), seed=seed)
        return [
            replace(self._bare(document), task=self.name, level=level_name(level), doc_id=i)
            for level in self.levels
            for i, document in enumerate(asked)
        ]

    def training_text(self, rng: np.random.Generator, *, chars: int) -> str:
        raise TaskError(f"task {self.name!r}: is asked after tuning and writes no training text")

    def learned_from(self, n: int, seed: int) -> list[Choice]:
        """Return `n` different training documents of the base; those of a smaller `n` are the first of them.

        Raises TaskError where the task has not as many."""
        base, found, seen = self.base, [], set()
        for i in range(n):
            rng = identity.generator(base.stem_digest, "tuning", seed, i)
            for attempt in range(_MAX_DRAWS):
                level = base.train_levels[int(rng.random() * len(base.train_levels))]
                doc = base._draw(rng, level, "train")
                assert isinstance(doc, Choice)
                # In turn, as long as there is hope for it: an answer may be rare, or not be there at all.
                due = attempt >= _MAX_DRAWS // 2 or doc.gold_index == i % len(doc.choices)
                if due and doc not in seen:
                    break
            else:
                raise TaskError(
                    f"task {base.name!r} has only {i} different examples to learn from, and {n} are asked for; lower "
                    "finetune.examples"
                )
            seen.add(doc)
            found.append(doc)
        return found

    def labelled(self, n: int, seed: int) -> list[Example]:
        """Return what is learned from as a model reads it."""
        from models.finetune import Example

        return [
            Example(
                prompt=self._prompt(doc),
                choices=tuple(self.base.delimiter + choice for choice in doc.choices),
                answer=doc.gold_index,
            )
            for doc in self.learned_from(n, seed)
        ]

    def _bare(self, document: Document) -> Document:
        """Return a document without its worked examples."""
        prompt = self._prompt(document.doc)
        return replace(document, prompt=prompt, shots=(), prompt_digest=prompting.prompt_digest(prompt))

    def _prompt(self, doc: Any) -> str:
        return prompting.render((), doc.prompt_text, join=self.base.join, preamble=self.base.preamble)


def tuned_task(
    base: Task, method: str, *, examples: Sequence[int], documents: int, recipe: dict[str, Any]
) -> TunedTask:
    """Return the task of asking `base` after tuning. Raises TaskError where nothing can be learned of it."""
    if base.output != "Choice":
        raise TaskError(f"task {base.name!r} returns {base.output}; only a task of choices has labels to learn")
    if base.asked_only or (base.data is not None and base.examples is None and not base.shared):
        raise TaskError(
            f"task {base.name!r}: all of its documents are asked, so there are none to learn from; give it examples="
        )

    def asked(rng: np.random.Generator, examples: int) -> Choice:
        raise TaskError("documents of a tuned task are those of the task it is made of")

    return TunedTask(
        **{name: getattr(base, name) for name in ("kind", "join", "delimiter", "preamble", "language", "normalize")},
        name=f"{base.name}-tuned-{method}",
        # What tuning gives counts as adaptation; the methods beside it are there to be compared with.
        ability="adaptation" if method == "full" else "",
        role="probe",
        grid={"examples": tuple(examples)},
        function=asked,
        size=documents,
        shots=0,
        data=None,
        examples=None,
        fixed_shots=False,
        cluster=None,
        asked_metrics=(),
        asked_metric=None,
        shared=False,
        balanced=False,
        train=None,
        train_grid={},
        asked_only=True,
        shortcut=None,
        version=base.version,
        file=base.file,
        base=base,
        method=method,
        recipe=recipe,
    )


def ask_tuned(
    checkpoint: Path,
    tasks: Sequence[TaskToAsk],
    *,
    results: Path,
    run_id: str,
    step: int,
    shape: ModelSpec,
    seed: int,
    tokenizer: str,
    tell: Callable[[TaskToAsk, dict[str, Any]], None],
) -> dict[str, str]:
    """Tune a checkpoint for each task and number of examples, ask what comes of it, and store each task's answers at
    once; return why some could not be asked, by name. `tell` hears what it does of ask.ask_tasks.

    `shape`: of the model, for weights from scratch. `seed`: of the run, which draws its examples, too."""
    failures = {}
    for asked in tasks:
        tell(asked, {})
        started = time.monotonic()
        try:
            frame = _answers(checkpoint, asked, results, run_id, step, shape, seed, tokenizer)
        except (ValueError, RuntimeError) as error:
            failures[asked.task.name] = str(error)
            tell(asked, {"error": str(error)})
        else:
            path = samples_path(results, run_id, step, asked.task.name, asked.digest)
            write_table(path, frame.assign(weights=AS_TRAINED), SAMPLES)
            tell(asked, {"documents": len(frame), "seconds": time.monotonic() - started})
    return failures


def _answers(
    checkpoint: Path,
    asked: TaskToAsk,
    results: Path,
    run_id: str,
    step: int,
    shape: ModelSpec,
    seed: int,
    tokenizer: str,
) -> pd.DataFrame:
    from models.finetune import FinetuneSpec, finetune
    from models.pretrained import Reader, load_tokenizer_of

    task = asked.task
    assert isinstance(task, TunedTask)
    spec = FinetuneSpec(method=task.method, seed=seed, **task.recipe)
    reader = Reader(load_tokenizer_of(checkpoint), shape.context_length)
    stored = documents_path(results, task.name, asked.digest)
    by_level: dict[str, list[Question]] = {}
    for question in questions_of(asked, reader, tokenizer, stored):
        by_level.setdefault(question.document.level, []).append(question)
    frames = []
    for level in task.levels:
        tuned = finetune(checkpoint, task.labelled(level["examples"], seed), spec, untrained=shape)
        model: Any = _as_lm(tuned, spec)
        at: dict[str, Any] = {"run_id": run_id, "step": step, "task_digest": asked.digest}
        frames.append(answer(model, by_level[level_name(level)], **at, language=task.language))
    return pd.concat(frames, ignore_index=True)


def _as_lm(tuned: Tuned, spec: FinetuneSpec) -> Any:
    from models.lm import TransformerLM

    return TransformerLM(tuned.model, tuned.tokenizer) if spec.head == "lm" else _Classifier(tuned)


class _Classifier:
    """A tuned classifier as what scores continuations: each label is one token."""

    def __init__(self, tuned: Tuned) -> None:
        self.tuned = tuned

    def loglikelihood(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Any]]:
        from models.finetune import Example
        from models.lm import Scored

        rows = self.tuned.logprobs([Example(prompt, tuple(texts), 0) for prompt, texts in requests])
        return [[Scored(value, 1, int(value == max(row))) for value in row] for row in rows]
