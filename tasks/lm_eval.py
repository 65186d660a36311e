"""Tasks that lm-eval describes, as tasks of this package: `arc = from_lm_eval("arc_easy")`.

The questions are lm-eval's, word for word; the metrics are this package's. Written against lm-eval 0.4.13.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tasks.base import Task, task
from tasks.errors import TaskError, suggest
from tasks.identity import caller_file
from tasks.lm_eval_rows import ITSELF, example_rows, load, manager, quiet, rows
from tasks.metrics import METRICS
from tasks.outputs import Answer, Choice, Doc, Text
from tasks.sources import Row

_OUTPUTS = {
    "multiple_choice": "Choice",
    "loglikelihood": "Answer",
    "loglikelihood_rolling": "Text",
    "generate_until": "Answer",
}
_KINDS = {"Choice": "qa", "Text": "language modeling", "Answer": "generation"}
_METRICS = {"acc_norm": "acc_char", "acc_bytes": "acc_byte", "acc_mutual_info": "acc_pmi", "brier_score": "brier"}
_HARMLESS_FILTERS = {"take_first", "remove_whitespace"}  # comparison ignores white space at the ends anyway


def from_lm_eval(
    name: str,
    *,
    include_path: str | Path | None = None,
    kind: str | None = None,
    ability: str = "",
    shots: int | None = None,
    size: int | None = None,
    max_tokens: int | None = None,
    delimiter: str | None = None,
    normalize: str | None = None,
    language: str = "en",
    metrics: Sequence[str] = (),
    metric: str | None = None,
) -> Task:
    """The lm-eval task of this name, from the installed package or from a folder of YAML files.

    Its data are read when they are needed, not here. Worked examples that the YAML fixes (sampler first_n) stay fixed;
    its random sampler is not copied: examples are drawn per document, as everywhere here, from at most 1,000 rows
    spread evenly over its few-shot split. Rows that ask the same twice count once.

    include_path: a folder of YAML files to look in instead, beside the file that calls this.
    kind, ability, size, language, metrics, metric: as in `@task`. A task that scores answers by code or filters of its
        own needs `metric`, because neither is run here.
    shots, max_tokens: instead of the YAML's.
    delimiter: what stands between its prompts and answers, where the template does not show that prompts end in white
        space (white space at the end of a prompt belongs to the answer, as in lm-eval).
    normalize: as in `@task`; by default "squad" where the YAML ignores case or punctuation.
    Raises Unavailable where lm-eval is not installed, TaskError for a name or a kind of task that cannot be used; the
    data, when read, raise either for what cannot be loaded or asked.
    """
    file = caller_file()
    folder = None if include_path is None else file.parent / include_path
    config = _config(name, folder)
    output = _output(name, config)
    scored = _scoring(name, config, output, metric)
    examples = int(config.get("num_fewshot") or 0) if shots is None else shots
    preamble, shown = _preamble(name, config, examples), config.get("fewshot_config") or {}
    join = shown.get("fewshot_delimiter") or config.get("fewshot_delimiter", "\n\n")
    if config.get("output_type") == "loglikelihood":  # its target brings its own white space
        delimiter = ""
    if delimiter is None:
        delimiter = _tail(config) + config.get("target_delimiter", " ")
    if output == "Text":  # read whole, whatever the YAML would put before a question
        examples, preamble, delimiter = 0, "", ""
    if normalize is None:
        normalize = "squad" if any(_lenient(entry) for entry in config.get("metric_list") or []) else "strip"

    @cache
    def theirs() -> Any:
        return load(name, folder)

    def read(row: Row) -> Doc:
        if "choices" in row:
            return Choice(row["prompt"], row["choices"], row["answer"])
        if "text" in row:
            return Text(row["text"])
        return Answer(row["prompt"], row["references"], stop=row.get("stop"), max_tokens=row.get("max_tokens", 1))

    read.__annotations__["return"] = output  # known before any data are read
    read.__doc__ = f"The task {name} of lm-eval."
    built = task(
        re.sub(r"[^\w-]", "_", name),
        kind=kind or _KINDS[output],
        ability=ability,
        size=size,
        shots=examples,
        data=lambda: rows(theirs(), name, delimiter, max_tokens),
        examples=(lambda: example_rows(theirs(), name, delimiter, examples)) if examples else None,
        fixed_shots=bool(examples) and shown.get("sampler") == "first_n",
        preamble=preamble,
        language=language,
        normalize=normalize,
        metrics=(*scored, *metrics),
        metric=metric,
        join=join,
        delimiter=delimiter,
    )(read)
    return replace(built, file=file)


# ---- What the YAML says, without its data ----


def _config(name: str, folder: Path | None) -> dict[str, Any]:
    """The YAML of a task with what it includes; functions that it names are given as text."""
    if folder is not None and not folder.is_dir():
        raise TaskError(f"from_lm_eval({name!r}): include_path must be a folder of YAML files, got {str(folder)!r}")
    with quiet():
        index = manager(name, folder).task_index
    if name not in index:
        raise TaskError(f"unknown lm-eval task {name!r}{suggest(name, index)} {_where(folder, index)}")
    entry = index[name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    if entry.kind.name in ("TAG", "GROUP"):
        names = [each if isinstance(each, str) else each.get("task") or each.get("group") for each in members or []]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise TaskError(f"lm-eval's {name!r} is a group; name its tasks one by one: {shown}")
    if entry.kind.name == "PY_TASK":
        raise TaskError(f"lm-eval task {name!r} is a Python class, not a description in YAML; {ITSELF}")
    return entry.cfg


def _where(folder: Path | None, index: Any) -> str:
    if folder is None:
        return f"The installed lm-eval has {len(index)}; lm-eval ls tasks lists them, include_path= adds a folder."
    return f"{folder} describes: {', '.join(sorted(index)) or 'no task'}."


def _output(name: str, config: dict[str, Any]) -> str:
    theirs = config.get("output_type", "generate_until")
    if theirs not in _OUTPUTS:
        raise TaskError(
            f"lm-eval task {name!r}: output type {theirs!r} has no counterpart here; accepted: {', '.join(_OUTPUTS)}. "
            f"{ITSELF}"
        )
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise TaskError(f"lm-eval task {name!r}: it shows images or sounds; only text can be asked here")
    sampling = config.get("generation_kwargs") or {}
    warm = sampling.get("do_sample", float(sampling.get("temperature", 0)) > 0)
    if warm or config.get("repeats", 1) > 1:
        raise TaskError(f"lm-eval task {name!r}: it samples its answers; here decoding is greedy. {ITSELF}")
    return _OUTPUTS[theirs]


def _scoring(name: str, config: dict[str, Any], output: str, metric: str | None) -> list[str]:
    """Our names of the metrics that the YAML asks for, where there are any."""
    asked = [str(entry["metric"]) for entry in config.get("metric_list") or []]
    if config.get("output_type") == "loglikelihood":
        asked = ["exact_match" if each == "acc" else "nats_per_token" for each in asked]
    ours = [_METRICS.get(each, each) for each in asked]
    known = [each for each in ours if each in METRICS and output in METRICS[each].outputs]
    own = []
    if config.get("process_results"):
        own.append("process_results")
    if output == "Answer":
        filters = [each for pipeline in config.get("filter_list") or [] for each in pipeline["filter"]]
        own += sorted({each["function"] for each in filters} - _HARMLESS_FILTERS)
        # Where punctuation is ignored these are the articles, which "squad" ignores too.
        own += [
            "regexes_to_ignore"
            for entry in config.get("metric_list") or []
            if entry.get("regexes_to_ignore") and not entry.get("ignore_punctuation")
        ]
        own += asked if asked and not known and not own else []
    if own and output != "Text" and metric is None:  # a text is scored by its log-probability, whatever is made of it
        raise TaskError(
            f"lm-eval task {name!r} scores answers in a way of its own ({', '.join(own)}), which is not run here; "
            f"give metric=, one of ours to score it by. {ITSELF}"
        )
    return known


def _lenient(entry: dict[str, Any]) -> bool:
    return bool(entry.get("ignore_case") or entry.get("ignore_punctuation"))


def _preamble(name: str, config: dict[str, Any], shots: int) -> str:
    """The description that every prompt begins with; one that differs by document is part of each question."""
    text = config.get("description") or ""
    if "{{" not in text and "{%" not in text:
        return text
    if shots:
        raise TaskError(
            f"lm-eval task {name!r}: its description differs by document, which only shots=0 can show: {text[:60]!r}"
        )
    return ""


def _tail(config: dict[str, Any]) -> str:
    """White space that the template of a prompt ends in."""
    template = config.get("gen_prefix") or config.get("doc_to_text")
    return template[len(template.rstrip()) :] if isinstance(template, str) else ""
