"""samples_*.jsonl of the LM Evaluation Harness (--log_samples) -> documents and answers of our store.

A file is taken only where our own scoring gives every document the score the file has for it; else its reported
numbers stand alone, with the reason. Token counts are not in these files: they stay missing, and so does every metric
per token. Greedy completions of single continuations (output type loglikelihood) need them, so they are not taken."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.store import DOCUMENTS, SAMPLES, StoreError
from tasks.prompting import prompt_digest

CHOICE = ("acc", "acc_char", "acc_byte", "brier", "logloss", "margin")
SAME_TEXT = ("acc", "brier", "logloss", "margin")  # where the contexts differ, lengths of continuations say nothing
ANSWER = ("exact_match", "f1", "edit_similarity")


class _Unfit(Exception):
    """A samples file cannot be scored by us; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One samples file: one task answered by one model at one checkpoint."""

    documents: pd.DataFrame  # columns of store.DOCUMENTS
    samples: pd.DataFrame  # columns of store.SAMPLES
    scored: tuple[str, ...]  # metrics of ours that these answers allow
    reported: Mapping[str, float]  # means of the file's own scores


def read_answers(path: Path, *, task: str, run_id: str, step: int, digest: str, n_shot: int) -> Answers | str:
    """Return the answers in a samples file, or why they cannot be scored. Raises StoreError for a damaged file."""
    rows = _lines(path)
    try:
        documents, samples, scored = _adapt(rows)
    except _Unfit as reason:
        return f"{path.name}: {reason}"
    shared: dict[str, Any] = {"task": task, "level": ""}
    docs = pd.DataFrame(documents).assign(**shared, stop=None, n_shot=n_shot)
    found = pd.DataFrame(samples).assign(**shared, run_id=run_id, step=step, task_digest=digest)
    for name in SAMPLES.names:
        if name not in found:
            found[name] = None
    own = {
        name: float(np.mean([float(row[name]) for row in rows]))
        for name in ("acc", "exact_match")
        if all(isinstance(row.get(name), int | float) for row in rows)
    }
    return Answers(
        documents=docs.reindex(columns=DOCUMENTS.names), samples=found[SAMPLES.names], scored=scored, reported=own
    )


def guess(documents: pd.DataFrame) -> tuple[float, str | None]:
    """Return the accuracy of a solver that knows nothing: an even guess, or the commonest answer where every document
    offers the same choices. (NaN, None) where there are no choices."""
    if not documents["output"].eq("Choice").all():
        return math.nan, None
    even = float(documents["chance"].mean())
    constant = float(documents["answer"].value_counts(normalize=True).iloc[0])
    fixed = documents["continuations"].map(tuple).nunique() == 1
    return (constant, "majority") if fixed and constant > even else (even, "uniform")


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        with open(path, encoding="utf-8") as file:
            for i, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError:
                        raise StoreError(f"{path}: line {i} is no JSON; is the file cut short? Copy it again") from None
                    if not isinstance(row, dict) or not {"doc_id", "target", "filtered_resps"} <= set(row):
                        raise StoreError(f"{path}: line {i} is no lm-eval sample (doc_id, target, filtered_resps)")
                    rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None
    if not rows:
        raise StoreError(f"{path}: is empty")
    return rows


def _adapt(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[str, ...]]:
    filters = {str(row.get("filter", "none")) for row in rows}
    if filters != {"none"}:
        raise _Unfit(f"answers read through the filter {sorted(filters - {'none'})[0]!r} are not scored again")
    ids = [row["doc_id"] for row in rows]
    if len(set(ids)) < len(ids):
        raise _Unfit("a document stands in it twice")
    first = _responses(rows[0])
    if len(first) > 1:
        return _choices(rows)
    if isinstance(first[0], list):
        raise _Unfit("single continuations come without token counts, so they are not scored again")
    return _generations(rows)


def _responses(row: Mapping[str, Any]) -> list[Any]:
    found = row["filtered_resps"]
    if not isinstance(found, list) or not found:
        raise _Unfit(f"document {row['doc_id']} has no responses")
    # A single loglikelihood comes as [logprob, greedy], with or without a list around it.
    if len(found) == 2 and not isinstance(found[0], list) and str(found[1]) in ("True", "False"):
        return [found]
    return found


def _arguments(row: Mapping[str, Any]) -> list[list[Any]]:
    """Return [context, continuation] of every request: a list in older files, gen_args_0: {arg_0, arg_1} in newer."""
    given = row.get("arguments")
    if isinstance(given, Mapping):
        requests = [given[key] for key in sorted(given, key=lambda key: int(str(key).rsplit("_", 1)[-1]))]
    else:
        requests = list(given or [])
    return [list(r.values()) if isinstance(r, Mapping) else list(r) for r in requests]


def _choices(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[str, ...]]:
    documents, samples = [], []
    scored: tuple[str, ...] = CHOICE
    for row in rows:
        responses, arguments = _responses(row), _arguments(row)
        where = f"document {row['doc_id']}"
        if len(arguments) != len(responses) or any(len(a) < 2 for a in arguments):
            raise _Unfit(f"{where} does not say what was asked")
        k = len(arguments)
        half = [a[1] for a in arguments[: k // 2]]
        if k % 2 == 0 and half == [a[1] for a in arguments[k // 2 :]] and not any(a[0] for a in arguments[k // 2 :]):
            arguments, responses = arguments[: k // 2], responses[: k // 2]  # the rest is for acc_mutual_info
        try:
            logprobs = [float(r[0]) for r in responses]
        except (TypeError, ValueError, IndexError):
            raise _Unfit(f"{where} has responses that are no log-probabilities") from None
        if not all(map(math.isfinite, logprobs)):
            raise _Unfit(f"{where} has a log-probability that is not finite")
        contexts = [str(a[0]) for a in arguments]
        texts = [str(a[1]) for a in arguments]
        prompt = contexts[0]
        if len(set(contexts)) > 1:  # the choice stands in the context, before a common continuation
            scored = SAME_TEXT
            prompt = contexts[0][
                : next(i for i in range(len(contexts[0]) + 1) if len({c[: i + 1] for c in contexts}) > 1)
            ]
            texts = [c[len(prompt) :] + t for c, t in zip(contexts, texts, strict=True)]
        answer = _answer(row, texts, logprobs)
        best = max(logprobs)
        clear = logprobs.count(best) == 1  # lm-eval gives a tie to the first choice, we share it
        if clear and "acc" in row and float(row["acc"]) != float(logprobs[answer] == best):
            raise _Unfit(f"{where} is scored {row['acc']} there, but its target is choice {answer}")
        documents.append(_document(row, "Choice", prompt, texts, answer=answer, chance=1 / len(texts)))
        samples.append(_sample(row, documents[-1], logprobs))
    return documents, samples, scored


def _answer(row: Mapping[str, Any], texts: Sequence[str], logprobs: Sequence[float]) -> int:
    """Return the index of the right choice: the target as a number or as a text, else what the file's score implies."""
    target = str(row["target"]).strip()
    if target.lstrip("-").isdigit() and 0 <= int(target) < len(texts):
        return int(target)
    bare = [text.strip() for text in texts]
    if bare.count(target) == 1:
        return bare.index(target)
    best = int(np.argmax(logprobs))
    if row.get("acc") in (1, 1.0, True):
        return best
    if len(texts) == 2 and row.get("acc") in (0, 0.0, False):
        return 1 - best
    raise _Unfit(f"document {row['doc_id']}: target {target[:40]!r} is none of its choices")


def _generations(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[str, ...]]:
    documents, samples = [], []
    for row in rows:
        said = _responses(row)[0]
        said = said[0] if isinstance(said, list) and len(said) == 1 else said
        if not isinstance(said, str):
            raise _Unfit(f"document {row['doc_id']} has several generations or none")
        arguments = _arguments(row)
        target, match = str(row["target"]), row.get("exact_match")
        if not isinstance(match, int | float) or float(match) != float(said.strip() == target.strip()):
            raise _Unfit("its own score is not whether the generation equals the target, so it is not computed again")
        prompt = str(arguments[0][0]) if arguments and arguments[0] else ""
        documents.append(_document(row, "Answer", prompt, [target], answer=0, chance=math.nan))
        samples.append(_sample(row, documents[-1], [None]) | {"generation": said, "generation_raw": said})
    return documents, samples, ANSWER


def _document(
    row: Mapping[str, Any], output: str, prompt: str, texts: Sequence[str], *, answer: int, chance: float
) -> dict[str, Any]:
    asked = {"doc_id": int(row["doc_id"]), "output": output, "prompt": prompt, "continuations": list(texts)}
    return asked | {"answer": answer, "chance": chance, "prompt_digest": prompt_digest(prompt)}


def _sample(row: Mapping[str, Any], document: Mapping[str, Any], logprobs: Sequence[float | None]) -> dict[str, Any]:
    unknown: list[int | None] = [None] * len(logprobs)
    answered = {"doc_id": int(row["doc_id"]), "prompt_digest": document["prompt_digest"], "logprobs": list(logprobs)}
    return answered | {"n_tokens": unknown, "n_greedy": list(unknown)}
