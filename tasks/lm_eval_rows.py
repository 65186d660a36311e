"""The data of lm-eval's tasks as rows that say word for word what is asked; for `tasks.lm_eval`."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tasks.errors import TaskError, Unavailable

ITSELF = "lm-eval itself can run it: python -m harness.lm_eval_model --help"
_MAX_TOKENS = 256  # lm-eval's default
_POOL = 1000  # rows of a few-shot split that examples are drawn from; rendering every row of some takes minutes
_NAMES = re.compile(r"^[\"']?task[\"']?:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)


def manager(name: str, folder: Path | None) -> Any:
    """lm-eval's index of a folder, else of the one that ships this task, else of all it ships (12 seconds)."""
    from lm_eval.tasks import TaskManager

    if folder is None and name in _shipped():
        folder = _shipped()[name].parent
    return TaskManager(include_path=folder, include_defaults=folder is None)


@cache
def _shipped() -> dict[str, Path]:
    """Every task that the installed lm-eval ships, and its YAML."""
    import lm_eval

    found: dict[str, Path] = {}
    for path in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")):
        for name in _NAMES.findall(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(name, path)
    return found


def load(name: str, folder: Path | None) -> Any:
    """lm-eval's task object, with its data set."""
    with quiet():
        found = manager(name, folder)
        try:
            loaded = found.load([name])["tasks"][name]
        except ModuleNotFoundError as error:
            raise Unavailable(f"lm-eval task {name!r} needs the package {error.name!r}: pip install it") from error
        except Exception as error:
            what = f"lm-eval task {name!r}: its data {found.task_index[name].cfg.get('dataset_path')!r}"
            if not isinstance(error, OSError | ValueError):  # what datasets raises for files that it cannot have
                raise TaskError(f"{what} or its templates do not work here ({_line(error)})") from error
            raise TaskError(
                f"{what} cannot be loaded ({_line(error)}); they are downloaded when first used and kept: run once "
                "with a network, or give include_path= a folder whose YAML reads local files (dataset_path: json)"
            ) from error
    if loaded.multiple_input:
        raise TaskError(
            f"lm-eval task {name!r}: its context varies and the ending is fixed, which no Choice can ask. {ITSELF}"
        )
    return loaded


def rows(theirs: Any, name: str, delimiter: str, max_tokens: int | None) -> list[dict[str, Any]]:
    """Every evaluation document as {prompt, choices, answer}, {prompt, references, max_tokens} with stop, or {text}."""

    def row(doc: Any) -> dict[str, Any]:
        if theirs.OUTPUT_TYPE == "loglikelihood_rolling":
            return {"text": theirs.doc_to_target(doc)}
        if theirs.OUTPUT_TYPE == "multiple_choice":
            return _choice_row(theirs, doc, delimiter)
        if theirs.OUTPUT_TYPE == "loglikelihood":
            return _target_row(theirs, doc)
        return _answer_row(theirs, doc, delimiter, max_tokens)

    return [_made(row, doc, f"{name}, row {i}") for i, doc in enumerate(theirs.eval_docs)]


def example_rows(theirs: Any, name: str, delimiter: str, shots: int) -> list[dict[str, Any]]:
    """The worked examples as {prompt, references}: the first ones where they are fixed, else those to draw from."""
    pool = theirs.fewshot_docs()
    # One more than is shown where they are fixed, because a document is never its own example.
    fixed = theirs.fewshot_cfg.sampler == "first_n"
    chosen = range(min(shots + 1, len(pool))) if fixed else range(0, len(pool), -(-len(pool) // _POOL) or 1)
    return [_made(lambda doc: _example(theirs, doc, delimiter), pool[i], f"{name}, example {i}") for i in chosen]


def _made(make: Callable[[Any], dict[str, Any]], doc: Any, where: str) -> dict[str, Any]:
    try:
        return make(doc)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from error
    except Exception as error:
        raise TaskError(f"{where}: lm-eval's own templates fail on it ({_line(error)})") from error


def _question(theirs: Any, doc: Any) -> str:
    description = theirs.config.description or ""
    opening = theirs.resolve_field(doc, description) if "{{" in description or "{%" in description else ""
    turn = theirs.build_qa_turn(
        q=theirs.doc_to_text(doc),
        gen_prefix=theirs.doc_to_prefix(doc),
        tgt_delim=theirs.config.target_delimiter,
        few_delim="",
    )
    return opening + "".join(message.to_text() for message in turn)


def _choice_row(theirs: Any, doc: Any, delimiter: str) -> dict[str, Any]:
    answer = theirs.doc_to_target(doc)
    if isinstance(answer, list):
        raise TaskError(f"it has {len(answer)} right choices; a Choice has one. {ITSELF}")
    stem = _stem(_question(theirs, doc) + theirs.config.target_delimiter, delimiter)
    return {"prompt": stem, "choices": list(theirs.doc_to_choice(doc)), "answer": answer}


def _stem(text: str, delimiter: str) -> str:
    """The prompt without what belongs to the answer."""
    stem = text.removesuffix(delimiter)
    if stem + delimiter != text or stem != stem.rstrip():
        raise TaskError(
            f"its prompt ends in {text[-20:]!r}, whose white space belongs to the answer, but the delimiter is "
            f"{delimiter!r}; give from_lm_eval delimiter={text[len(text.rstrip()) :]!r} if all rows do"
        )
    return stem


def _target_row(theirs: Any, doc: Any) -> dict[str, Any]:
    """A target that is scored and not written; white space at the end of a prompt moves to it, as in lm-eval."""
    question = _question(theirs, doc)
    target = question[len(question.rstrip()) :] + theirs.doc_to_target(doc)
    return {"prompt": question.rstrip(), "references": [target], "max_tokens": 0}


def _answer_row(theirs: Any, doc: Any, delimiter: str, max_tokens: int | None) -> dict[str, Any]:
    target = theirs.doc_to_target(doc)
    if theirs.config.doc_to_choice is not None:
        target = theirs.doc_to_choice(doc)[target]
    listed = [str(each) for each in (target if isinstance(target, list) else [target])]
    settings = theirs.config.generation_kwargs
    until = settings.get("until") or []
    stop = [mark for mark in ([until] if isinstance(until, str) else until) if mark]
    limits = [settings.get(key) for key in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")]
    question = _question(theirs, doc)
    moved = question[len(question.rstrip()) :]
    if any(mark in moved for mark in stop):
        raise TaskError(
            f"its prompt ends in {moved!r}, which belongs to the answer here and would end it at once (stop: {stop}). "
            f"{ITSELF}"
        )
    return {
        "prompt": question.rstrip(),
        "references": list(dict.fromkeys(each for each in listed if each.strip())),
        "stop": stop,
        "max_tokens": next(int(each) for each in (max_tokens, *limits, _MAX_TOKENS) if each is not None),
    }


def _example(theirs: Any, doc: Any, delimiter: str) -> dict[str, Any]:
    """A worked example as lm-eval writes it, cut where its answer begins."""
    own = theirs.fewshot_cfg
    choices = theirs.doc_to_choice(doc, own.doc_to_choice) if own.doc_to_choice else None
    answer = theirs.doc_to_target(doc, own.doc_to_target)
    turn = theirs.build_qa_turn(
        q=theirs.doc_to_text(doc, own.doc_to_text),
        c=choices,
        a=answer,
        gen_prefix=theirs.resolve_field(doc, own.gen_prefix),
        tgt_delim=own.target_delimiter,
        few_delim="",
    )
    if choices and isinstance(answer, int):
        answer = choices[answer]
    right = answer[0] if isinstance(answer, list) else answer
    before = "".join(message.to_text() for message in turn).removesuffix(right)
    return {"prompt": _stem(before, delimiter), "references": [right]}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:160]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without their logging and progress bars, which tell of nothing the user did."""
    try:
        import lm_eval.tasks  # noqa: F401
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError as error:
        raise Unavailable(
            f"from_lm_eval needs the package {error.name!r}: pip install 'lm-eval>=0.4.13,<0.5'"
        ) from error
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    before = [logger.level for logger in loggers]
    shown = not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        disable_progress_bars()
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if shown:
            enable_progress_bars()
