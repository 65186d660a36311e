"""Stored answers for tests: documents, what models made of them, and the task they belong to."""

import pandas as pd

from tasks.metrics import DEFAULTS


def a_task(name: str, output: str, **more: object) -> dict:
    metrics = list(DEFAULTS[output])
    plain = {"name": name, "kind": "qa", "ability": "x", "role": "probe", "metrics": metrics, "metric": metrics[0]}
    return plain | {"digest": "d", "shortcut": {}} | more


def some_documents(task: str, output: str, continuations: list[list[str]], answers: list[int | None]) -> pd.DataFrame:
    frame = pd.DataFrame({"doc_id": range(len(continuations)), "continuations": continuations, "answer": answers})
    return frame.assign(task=task, level="", output=output, prompt="p", chance=None, n_shot=0, prompt_digest="x")


def some_samples(task: str, logprobs: list[list[float]], run_id: str = "a", **more: object) -> pd.DataFrame:
    frame = pd.DataFrame({"doc_id": range(len(logprobs)), "logprobs": logprobs})
    frame["n_tokens"] = [[2] * len(row) for row in logprobs]
    frame["n_greedy"] = [[1] * len(row) for row in logprobs]
    units = dict.fromkeys(f"{u}{g}" for u in ("words", "chars", "sentences") for g in ("", "_greedy"))
    return frame.assign(run_id=run_id, step=10, task=task, level="", **{**units, "generation": None, **more})
