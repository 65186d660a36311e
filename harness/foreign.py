"""Metrics and tasks of other harnesses: what a metric's name means, and what a solver without the ability scores.

What is in neither table here nor in tasks.metrics has to be declared; nothing is guessed from a name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from harness.store import StoreError
from tasks.metrics import METRICS

FORMS = ("threshold", "share", "continuous")
DIRECTIONS = ("higher", "lower")
_SHARE, _OPEN, _POSITIVE = (0.0, 1.0), (-math.inf, math.inf), (0.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class ForeignMetric:
    """What is known of a metric that was computed elsewhere."""

    name: str
    form: str  # "threshold": share of documents right; "share": graded, in [0, 1]; "continuous": anything else
    higher_is_better: bool
    bounds: tuple[float, float]
    percent: bool = False  # comes as 0..100 and is stored divided by 100, so that one effect size fits all shares
    language_modeling: bool = False  # the loss of a text, not of an answer

    @property
    def continuous(self) -> bool:
        return self.form != "threshold" and not is_descriptive(self.name)


def _known(
    form: str, direction: str, names: str, bounds: tuple[float, float] | None = None, **flags: bool
) -> dict[str, ForeignMetric]:
    inside = bounds or (_OPEN if form == "continuous" else _SHARE)
    return {
        name: ForeignMetric(name=name, form=form, higher_is_better=direction == "higher", bounds=inside, **flags)
        for name in names.split()
    }


# Sources of the lm-eval rows: its lm_eval/api/metrics.py and the metric_list of its task files, version 0.4.13.
KNOWN: dict[str, ForeignMetric] = {
    **_known(
        "threshold",
        "higher",
        "acc acc_norm acc_bytes acc_mutual_info acc_all accuracy exact_match em exact f1 mc1 contains numerical_match "
        "pass_at_1 prompt_level_strict_acc prompt_level_loose_acc inst_level_strict_acc inst_level_loose_acc "
        "bleu_acc rouge1_acc rouge2_acc rougeL_acc word_accuracy char_accuracy",
    ),
    **_known("threshold", "lower", "pct_stereotype"),
    **_known(
        "share",
        "higher",
        "mc2 rouge1 rouge2 rougeL rougeLsum recall precision bert_score likelihood soft_prob partial_accuracy anls",
    ),
    # sacrebleu, and the scores of truthfulqa_gen, count from 0 to 100.
    **_known("share", "higher", "bleu chrf chrf++ bleu_max rouge1_max rouge2_max rougeL_max", percent=True),
    **_known("continuous", "lower", "ter", _POSITIVE, percent=True),
    **_known("continuous", "higher", "bleu_diff rouge1_diff rouge2_diff rougeL_diff", (-1.0, 1.0), percent=True),
    **_known("continuous", "higher", "mcc", (-1.0, 1.0)),
    **_known("continuous", "lower", "perplexity ppl", (1.0, math.inf)),
    **_known("continuous", "lower", "word_perplexity byte_perplexity", (1.0, math.inf), language_modeling=True),
    **_known("continuous", "lower", "loss lm_loss cross_entropy nll c4_loss", _POSITIVE, language_modeling=True),
    **_known("continuous", "lower", "bits_per_byte bits_per_char bpc", _POSITIVE, language_modeling=True),
    **_known("continuous", "lower", "bpb task_bpb likelihood_diff likelihood_difference", _POSITIVE),
    **_known("continuous", "lower", "brier_score", (0.0, 2.0)),
    **_known("continuous", "higher", "token_logprob logprob log_prob loglikelihood log_likelihood log_soft bleurt"),
}  # fmt: skip
_NUMBERED = re.compile(r"(?:pass|maj|major)(?:@|_at_)\d+")
PERPLEXITIES = ("perplexity", "ppl", "word_perplexity", "byte_perplexity")  # exp of nats; their logarithm is added

# The first of these on the same documents is what a threshold metric is read against; log_* before the perplexity.
PARTNERS = (
    *("token_logprob", "logprob", "log_prob", "loglikelihood", "log_likelihood", "nats_per_token", "logloss"),
    *("task_bpb", "bpb", "log_perplexity", "log_ppl", "log_soft", "brier_score", "brier", "nll", "loss"),
    *("cross_entropy", "bits_per_byte", "soft_prob", "likelihood", "edit_similarity", "margin", "mc2"),
)
_PARTNER_OF = {"pct_stereotype": ("likelihood_diff", "likelihood_difference")}
# The threshold metric a task is known by, where its file does not say; else its first threshold metric.
HEADLINES = ("exact_match", "em", "acc", "accuracy", "pass@1", "pass_at_1", "mc1", "f1", "acc_norm")

# Scores of a solver without the ability. "uniform": an even guess among k choices; "majority": the commoner answer of
# the evaluation split, which a constant answer reaches; "no match": free text, which no blind answer hits.
_CHOICES = {
    2: "piqa winogrande winogrande_* copa storycloze* xstorycloze* xwinograd* xcopa* wic wsc273 blimp* crows_pairs*",
    3: "anli* xnli* social_iqa siqa",
    4: "hellaswag hellaswag_* arc_easy arc_challenge arc_easy_* arc_challenge_* sciq logiqa logiqa2 openbookqa race "
    "mmlu mmlu_* hendrycksTest-* swag medmcqa medqa_4options headqa* prost",
    5: "commonsense_qa mathqa qa4mre*",
}
_MAJORITY = {
    **{"boolq": 2033 / 3270, "rte": 146 / 277, "cb": 28 / 56, "mnli": 3479 / 9815, "qnli": 2761 / 5463},
    **{"sst2": 444 / 872, "mrpc": 279 / 408, "wnli": 40 / 71, "wsc": 66 / 104},
}
_FREE_TEXT = "lambada* gsm8k* gsm_plus* triviaqa nq_open webqs drop squad* coqa arithmetic_* minerva_math* asdiv*"
GUESSED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "accuracy", "acc_char", "acc_byte", "acc_token")


def parse_metric(name: str, said: str) -> ForeignMetric:
    """Read a declaration "threshold|share|continuous,higher|lower[,percent]". Raises StoreError for anything else."""
    form, _, rest = said.replace(" ", "").partition(",")
    direction, _, percent = rest.partition(",")
    if form not in FORMS or direction not in DIRECTIONS or percent not in ("", "percent"):
        raise StoreError(
            f"metric {name!r}: {said!r} is not a declaration; accepted: threshold|share|continuous,higher|lower, and "
            "',percent' after it where the values run from 0 to 100"
        )
    found = _known(form, direction, name, percent=bool(percent))
    return found[name]


def base_name(metric: str) -> str:
    """Return a metric without the filter it was read through: "exact_match[strict-match]" -> "exact_match"."""
    return metric.partition("[")[0]


def is_descriptive(metric: str) -> bool:
    """Whether a metric, ours or of that name, says how an answer is and not how good."""
    base = base_name(metric)
    return base in METRICS and METRICS[base].descriptive


def judged(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table that tell of an ability: those of descriptive metrics are none to be tested."""
    if "metric" not in scores:
        return scores  # whoever reads it says what is missing
    return scores[np.array([not is_descriptive(str(name)) for name in scores["metric"]], dtype=bool)]


def describe(metric: str, declared: Mapping[str, ForeignMetric]) -> ForeignMetric | None:
    """Return what is known of a metric; None where it is neither declared nor in a table."""
    base = base_name(metric)
    if found := declared.get(metric) or declared.get(base):
        return found
    if base in KNOWN and KNOWN[base].form == "share":  # bleu and chrf run to 100 elsewhere
        return KNOWN[base]
    if base in METRICS:
        own = METRICS[base]
        graded = own.continuous or own.descriptive
        form = "threshold" if not graded else "share" if own.bounds == _SHARE else "continuous"
        lm = own.outputs == ("Text",) or base == "nats_per_token"
        return ForeignMetric(
            name=base, form=form, higher_is_better=own.higher_is_better, bounds=own.bounds, language_modeling=lm
        )
    if base.startswith("log_") and base[4:] in PERPLEXITIES:
        lm = KNOWN[base[4:]].language_modeling
        return ForeignMetric(
            name=base, form="continuous", higher_is_better=False, bounds=_POSITIVE, language_modeling=lm
        )
    if _NUMBERED.fullmatch(base):
        return ForeignMetric(name=base, form="threshold", higher_is_better=True, bounds=_SHARE)
    return KNOWN.get(base)


def partner_of(metric: str, continuous: Iterable[str]) -> str | None:
    """Return the continuous metric of the same documents that a threshold metric is read against; None without one."""
    if is_descriptive(metric):
        return None
    there = list(continuous)
    wanted = _PARTNER_OF.get(base_name(metric), PARTNERS)
    own = METRICS[base_name(metric)].partner if base_name(metric) in METRICS else None
    return next((name for name in (own, *wanted) if name in there), None)


def chance_of(task: str, metric: str) -> tuple[float, str | None]:
    """Return the score without the ability and how it is reached; (NaN, None) where the tables do not know."""
    base = base_name(metric)
    if base in ("exact_match", "em", "contains", "numerical_match") or _NUMBERED.fullmatch(base):
        return 0.0, "no match"
    if base == "pct_stereotype":
        return 0.5, "uniform"
    if base == "mcc":
        return 0.0, "uniform"
    if base not in GUESSED:
        return math.nan, None
    if task in _MAJORITY:
        return _MAJORITY[task], "majority"
    for k, patterns in _CHOICES.items():
        if any(fnmatchcase(task, pattern) for pattern in patterns.split()):
            return 1 / k, "uniform"
    if any(fnmatchcase(task, pattern) for pattern in _FREE_TEXT.split()):
        return 0.0, "no match"
    return math.nan, None
