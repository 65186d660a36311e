"""How much faster than lm-eval are the questions a task asks of a model, and do the answers agree?

Both run in one process, on one thread, on the same untrained model, tokenizer and documents, in turn;
tokenizing counts on both sides. lm-eval runs at the fastest of several batch sizes, with its cache of one-token logits;
its "auto" is an option here, because it begins each call by running 64 rows of full context five times over. Reported
is the median of the ratios of neighbouring runs, in CPU seconds: of use where the machine has other work, too.

Where both must run every token once (a small vocabulary, one row per document: choices of one token, whole texts) no
large gain is to be had; it comes from contexts and examples run once, and from the head left out where nobody asks.
A whole text costs tens of thousands of nats, which lm-eval adds up in float32: hence its larger difference.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_evaluation.py [--repeat 5] [--out reports/benchmarks/evaluation.json]"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from models import encoding
from models.lm import TransformerLM

CONTEXT = 1024
SHOTS, CHOICES = 8, 4
WORDS = 4000  # of one to three syllables: enough for merges, few enough for short tokens


def words(rng: np.random.Generator) -> list[str]:
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    return ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(WORDS)]


class Texts:
    """Sentences of made-up words, the frequent ones first."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = words(np.random.default_rng(0))
        chances = 1 / np.arange(1, WORDS + 1)
        self.chances = chances / chances.sum()

    def phrase(self, n: int) -> str:
        return " ".join(self.rng.choice(self.words, n, p=self.chances))

    def shot(self) -> str:
        return f"Question: {self.phrase(30)}?\nAnswer: {self.phrase(4)}"

    def question(self, shots: list[str]) -> str:
        return "\n\n".join([*shots, f"Question: {self.phrase(20)}?\nAnswer:"])


def tokenizer_of(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on made-up text; what training leaves of the vocabulary is filled with unused tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = Texts(1)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((texts.phrase(200) for _ in range(200)), trainer)
    tokenizer.add_tokens([f"<unused{i}>" for i in range(vocab_size - tokenizer.get_vocab_size())])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


def model_of(vocab_size: int, d_model: int, n_layer: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=n_layer,
        num_attention_heads=d_model // 32,
        intermediate_size=8 * d_model // 3 // 8 * 8,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.1,  # answers that differ by more than rounding
    )
    return LlamaForCausalLM(config).eval()


class Case:
    """One kind of question: what ours is asked, and the same for lm-eval. Answers are floats or texts."""

    def __init__(self, name: str, ours: Callable[[TransformerLM], list], theirs: Callable[[Any], list]) -> None:
        self.name, self.ours, self.theirs = name, ours, theirs


def choice_case(name: str, requests: list[tuple[str, list[str]]]) -> Case:
    from lm_eval.api.instance import Instance

    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, text), idx=0)
        for context, texts in requests
        for text in texts
    ]
    return Case(
        name,
        lambda lm: [s.logprob for group in lm.loglikelihood(requests) for s in group],
        lambda lm: [answer[0] for answer in lm.loglikelihood(instances, disable_tqdm=True)],
    )


def rolling_case(name: str, texts: list[str]) -> Case:
    from lm_eval.api.instance import Instance

    instances = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(t,), idx=0) for t in texts]
    return Case(
        name,
        lambda lm: [s.logprob for s in lm.loglikelihood_rolling(texts)],
        lambda lm: lm.loglikelihood_rolling(instances, disable_tqdm=True),
    )


def generation_case(name: str, prompts: list[str], stop: str, max_tokens: int) -> Case:
    from lm_eval.api.instance import Instance

    asked = {"until": [stop], "max_gen_toks": max_tokens, "do_sample": False}
    instances = [Instance(request_type="generate_until", doc={}, arguments=(p, asked), idx=0) for p in prompts]
    n = len(prompts)
    return Case(
        name,
        lambda lm: [g.text for g in lm.generate(prompts, stop=[(stop,)] * n, max_tokens=[max_tokens] * n)],
        lambda lm: lm.generate_until(instances, disable_tqdm=True),
    )


def cases(n_documents: int, tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM) -> list[Case]:
    texts = Texts(2)
    tokens_per_word = len(tokenizer(texts.phrase(1000))["input_ids"]) / 1000
    n_shots = max(1, round(500 / (36 * tokens_per_word)))

    def shots() -> list[str]:
        return [texts.shot() for _ in range(n_shots)]

    fixed = shots()
    one_token = [t for t in (" A", " B", " C", " D")]
    words_of = lambda: [" " + texts.phrase(int(n)) for n in texts.rng.integers(2, 5, CHOICES)]  # noqa: E731
    differing = [(texts.question(shots()), words_of()) for _ in range(n_documents)]
    prompts = [texts.question(shots()[: texts.rng.integers(1, n_shots + 1)]) for _ in range(4 * n_documents)]
    return [
        choice_case("multiple choice", differing),
        choice_case("multiple choice, fixed shots", [(texts.question(fixed), words_of()) for _ in range(n_documents)]),
        choice_case("single-token choices", [(context, one_token) for context, _ in differing]),
        rolling_case("rolling", [texts.phrase(int(n)) for n in texts.rng.integers(100, 1500, n_documents)]),
        generation_case("generation", prompts, common_stop(model, tokenizer, prompts), 48),
    ]


def common_stop(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> str:
    """A string at which about half of the answers end, each at another length: what a trained model's newline does."""
    lm = TransformerLM(model, tokenizer)
    raw = [g.raw for g in lm.generate(prompts, stop=[()] * len(prompts), max_tokens=[48] * len(prompts))]
    counts = {c: sum(c in text for text in raw) for c in set("".join(raw))}
    return min(sorted(counts), key=lambda c: abs(counts[c] - 0.75 * len(raw)))


@contextlib.contextmanager
def silence():
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def timed(call: Callable[[Any], list], lm: Any) -> tuple[float, list]:
    encoding._ENCODINGS.clear()
    if isinstance(lm, TransformerLM):
        lm._encoding._known.clear()
    with silence():
        begin = time.process_time()
        answers = call(lm)
        return time.process_time() - begin, answers


def difference(ours: list, theirs: list) -> float | None:
    """Largest difference between log-probabilities in nats; of texts, the fraction that differ."""
    if isinstance(ours[0], str):
        return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def measure(case: Case, ours: TransformerLM, rivals: dict[Any, Any], repeat: int) -> dict[str, Any]:
    timed(case.ours, ours)
    settings = {size: timed(case.theirs, lm)[0] for size, lm in rivals.items()}
    best = min(settings, key=settings.__getitem__)
    pairs = []
    for _ in range(repeat):
        taken, answers = timed(case.ours, ours)
        theirs, expected = timed(case.theirs, rivals[best])
        pairs.append((taken, theirs))
    return {
        "name": case.name,
        "ours_s": statistics.median(a for a, _ in pairs),
        "lm_eval_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "max_abs_diff": difference(answers, expected),
        "lm_eval_batch_size": best,
    }


HEAD = (
    "| case | model | vocabulary | ours, s | lm-eval, s (batch) | ratio | largest difference |",
    "|---|---|---|---|---|---|---|",
)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    return (
        f"| {row['name']} | {row['model']} | {row['vocab']:,} | {row['ours_s']:.3f} | {row['lm_eval_s']:.3f} "
        f"({row['lm_eval_batch_size']}) | {row['ratio']:.2f} | {row['max_abs_diff']:.1e} |"
    )


def described(found: list[dict[str, Any]]) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "lm_eval")
    return {
        "device": f"CPU, one thread ({platform.machine()})",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "cases": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--documents", type=int, default=4, help="of multiple choice; texts as many, prompts four times as many"
    )
    parser.add_argument("--only", default="", help="run the cases whose name holds this")
    parser.add_argument("--sizes", default="4x128,6x256", help="LAYERSxWIDTH, the first with both vocabularies")
    parser.add_argument("--auto", action="store_true", help="try lm-eval's automatic batch size, too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    with silence():
        from lm_eval.models.huggingface import HFLM

    sizes = options.sizes.split(",")
    found = []
    print("\n".join(HEAD))
    for size, vocab_size in [(sizes[0], 50_304), (sizes[0], 512), *((size, 50_304) for size in sizes[1:])]:
        n_layer, d_model = map(int, size.split("x"))
        model, tokenizer = model_of(vocab_size, d_model, n_layer), tokenizer_of(vocab_size)
        ours = TransformerLM(model, tokenizer)
        rivals = {}
        with silence():
            for batch in (1, 4, 16, *(["auto"] if options.auto else [])):
                rivals[batch] = HFLM(
                    pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, device="cpu",
                    max_length=CONTEXT,
                )  # fmt: skip
        for case in cases(options.documents, tokenizer, model):
            if options.only not in case.name:
                continue
            row = {"model": size, "vocab": vocab_size} | measure(case, ours, rivals, options.repeat)
            found.append(row)
            print(line(row), flush=True)
            if options.out:
                record = described(found)
                options.out.write_text(json.dumps(record, indent=1) + "\n")
                made_by = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
                table = "\n".join([f"{record['device']}; {made_by}.", "", *HEAD, *map(line, found)])
                options.out.with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
