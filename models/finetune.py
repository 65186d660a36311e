"""Tune a trained checkpoint on labelled examples: a classification head, or the whole language model on its answers.

Controls have the same examples and steps: "frozen" trains the head alone (a linear probe), "scratch" starts from
untrained weights of the same shape. On a CPU a result is a function of checkpoint, examples and FinetuneSpec."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import dropout, log_softmax
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GraniteConfig
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.granite.modeling_granite import GranitePreTrainedModel

from models.checkpoint import quiet
from models.decoder import build
from models.distributed import make_accelerator, process_device
from models.lm import TransformerLM
from models.parametrization import LearningRule, learning_rule
from models.spec import ModelSpec, SpecError, TrainSpec, require_one_of, require_positive_ints
from models.tokenizer import load_tokenizer

HEADS = ("classifier", "lm")
METHODS = ("full", "frozen", "scratch")
SCHEDULES = ("cosine", "linear", "wsd")
_WSD_DECAY = 0.2  # share of the steps
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class GraniteForSequenceClassification(GenericForSequenceClassification, GranitePreTrainedModel):
    """The head transformers gives its other decoders: a linear map of the last token's features."""


AutoModelForSequenceClassification.register(GraniteConfig, GraniteForSequenceClassification, exist_ok=True)


@dataclass(frozen=True)
class Example:
    """A question with its choices, each as it stands after the prompt, and the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def label(self) -> str:
        return self.choices[self.answer]


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec:
    """How a checkpoint is tuned."""

    method: str = "full"
    head: str = "classifier"
    learning_rate: float | None = None  # at its peak; None: 1e-3, and 1e-2 for a head that learns alone
    schedule: str = "cosine"
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    dropout: float = 0.0  # of token embeddings and of the head's input
    steps: int = 120
    batch: int = 16
    validate_each: int = 4  # every so many-th example of a label is kept for validation; 0: none, and no early stop
    check_every: int = 10  # steps
    patience: int = 4  # checks without a better validation loss
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("method", self.method, METHODS)
        require_one_of("head", self.head, HEADS)
        require_one_of("schedule", self.schedule, SCHEDULES)
        require_positive_ints(self, "steps", "batch", "check_every", "patience")
        for name, low, high in (("warmup", 0, 1), ("dropout", 0, 1), ("weight_decay", 0, math.inf)):
            value = getattr(self, name)
            if not low <= value < high:
                raise SpecError(f"{name} must be at least {low} and below {high}, got {value!r}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SpecError(f"learning_rate must be above 0, got {self.learning_rate!r}")
        if self.validate_each < 0 or self.validate_each == 1:
            raise SpecError(f"validate_each must be 0 (none) or at least 2, got {self.validate_each!r}")

    @property
    def peak_lr(self) -> float:
        return self.learning_rate or (1e-2 if self.method == "frozen" else 1e-3)


@dataclass(frozen=True)
class Tuned:
    """A tuned model, ready to be asked."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    spec: FinetuneSpec
    steps: int  # taken until the weights that were kept; 0: a language model that was best as it was
    train_loss: float  # nats, last step
    validation_loss: float | None  # of the weights that were kept; None where nothing was kept for validation

    def logprobs(self, asked: Sequence[Example]) -> list[list[float]]:
        """Log-probability of every choice of every example. Raises SpecError for a label unseen in training."""
        if self.spec.head == "lm":
            scored = TransformerLM(self.model, self.tokenizer).loglikelihood([(e.prompt, e.choices) for e in asked])
            return [[choice.logprob for choice in group] for group in scored]
        unseen = sorted({choice for e in asked for choice in e.choices} - set(self.labels))
        if unseen:
            raise SpecError(
                f"label {unseen[0]!r} was not seen in training (seen: {', '.join(map(repr, self.labels))}); give more "
                "labelled examples, or tune with head='lm'"
            )
        rows = [_prompt_ids(self.model, self.tokenizer, e) for e in asked]
        found: list[list[float]] = []
        with torch.no_grad():
            for i in range(0, len(rows), 64):
                batch = _padded(rows[i : i + 64], self.model.config.pad_token_id)  # the head reads before the padding
                logs = log_softmax(self.model(**batch, use_cache=False).logits.float(), -1)
                for e, row in zip(asked[i : i + 64], logs, strict=True):
                    found.append([row[self.labels.index(choice)].item() for choice in e.choices])
        return found


def finetune(
    folder: Path, examples: Sequence[Example], spec: FinetuneSpec, *, untrained: Path | ModelSpec | None = None
) -> Tuned:
    """Tune the checkpoint in `folder`; it is left as it is.

    `untrained` is where method "scratch" starts: a step-0 checkpoint, or a shape, drawn with the spec's seed. A shape
    also scales the learning rate of every kind of weight with width and depth, as training does. Raises SpecError
    for examples that cannot teach a choice and a checkpoint without tokenizer."""
    labels = tuple(sorted({e.label for e in examples}))
    if len(labels) < 2:
        raise SpecError(f"labelled examples need at least two labels, got {', '.join(map(repr, labels)) or 'none'}")
    n_known = len({choice for e in examples for choice in e.choices})
    if spec.head == "classifier" and n_known > len(examples):
        raise SpecError(f"{n_known} labels, but only {len(examples)} labelled examples; give at least one per label")
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise SpecError(f"{folder}: has no tokenizer ({', '.join(_TOKENIZER_FILES)}); save one beside the weights")
    tokenizer = load_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = _start(folder, spec, len(labels), tokenizer, untrained)
        return _train(model, tokenizer, examples, labels, spec, untrained if isinstance(untrained, ModelSpec) else None)


def _start(folder: Path, spec: FinetuneSpec, n_labels: int, tokenizer: Any, untrained: Path | ModelSpec | None) -> Any:
    """The model before the first step; a classifier's head starts at zero."""
    if spec.method == "scratch" and untrained is None:
        raise SpecError("method 'scratch' needs untrained=: a step-0 checkpoint, or the shape of the model")
    with quiet():
        if spec.method == "scratch" and isinstance(untrained, ModelSpec):
            lm: Any = build(untrained, seed=spec.seed)
        else:
            source = untrained if spec.method == "scratch" and isinstance(untrained, Path) else folder
            lm = AutoModelForCausalLM.from_pretrained(source, local_files_only=True, dtype=torch.float32)
        if spec.head == "lm":
            model = lm
        else:
            config = copy.deepcopy(lm.config)
            config.num_labels = n_labels
            config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
            model = AutoModelForSequenceClassification.from_config(config)
            model.base_model.load_state_dict(lm.base_model.state_dict())
            torch.nn.init.zeros_(_head(model).weight)
    if spec.method == "frozen":
        if spec.head == "lm" and lm.config.tie_word_embeddings:
            raise SpecError("a frozen body needs a head of its own, but this one is tied to the embeddings")
        model.requires_grad_(False)
        _head(model).requires_grad_(True)
    return model


def _head(model: Any) -> torch.nn.Linear:
    head: torch.nn.Linear = getattr(model, "score", None) or model.get_output_embeddings()
    return head


def _prompt_ids(model: Any, tokenizer: Any, example: Example) -> list[int]:
    """Begin-of-text and the prompt, which loses its beginning where it is too long."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    return [first or 0, *ids[-(model.config.max_position_embeddings - 1) :]]


def _padded(rows: Sequence[Sequence[int]], fill: int = 0) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _batch(
    model: Any, tokenizer: Any, part: Sequence[Example], labels: tuple[str, ...], head: str
) -> dict[str, torch.Tensor]:
    prompts = [_prompt_ids(model, tokenizer, e) for e in part]
    if head == "classifier":
        fill = model.config.pad_token_id
        return _padded(prompts, fill) | {"labels": torch.tensor([labels.index(e.label) for e in part])}
    answers = [tokenizer(e.label, add_special_tokens=False)["input_ids"] for e in part]
    room = model.config.max_position_embeddings
    rows = [[*prompt, *answer][-room:] for prompt, answer in zip(prompts, answers, strict=True)]
    batch = _padded(rows)
    targets = torch.full_like(batch["input_ids"], -100)
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        targets[i, len(row) - len(answer) : len(row)] = torch.tensor(answer)
    return batch | {"labels": targets}


def _split(examples: Sequence[Example], each: int) -> tuple[list[Example], list[Example]]:
    """Training and validation part; a label of fewer than `each` examples is all for training."""
    seen: dict[str, int] = {}
    parts: tuple[list[Example], list[Example]] = ([], [])
    for e in examples:
        seen[e.label] = seen.get(e.label, 0) + 1
        parts[bool(each) and seen[e.label] % each == 0].append(e)
    return parts


def rate(step: int, spec: FinetuneSpec) -> float:
    """Multiplier on the peak learning rate at a step (from 0): linear up, then by the schedule to almost 0."""
    warmup = spec.warmup * spec.steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    left = (spec.steps - step) / (spec.steps - warmup)
    if spec.schedule == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return left if spec.schedule == "linear" else min(1.0, left / _WSD_DECAY)


def _groups(model: Any, spec: FinetuneSpec, shape: ModelSpec | None) -> list[dict[str, Any]]:
    """AdamW's groups of what learns: all alike, or each kind of weight as `shape` has it trained.

    A classification head counts as hidden there, lr / m: it reads d_model features, and nothing divides its logits."""
    recipe = TrainSpec(tokens=1, batch_tokens=1, peak_lr=spec.peak_lr, weight_decay=spec.weight_decay, n_checkpoints=2)
    even = LearningRule(recipe.peak_lr, recipe.eps, recipe.weight_decay)
    groups: dict[LearningRule, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = even if shape is None else learning_rule(name, shape, recipe)
            groups.setdefault(rule, []).append(parameter)
    return [{"params": params, **rule._asdict()} for rule, params in groups.items()]


def _batches(part: Sequence[Example], spec: FinetuneSpec) -> Iterator[list[Example]]:
    """Endless, each example once before any comes again."""
    generator = torch.Generator().manual_seed(spec.seed)
    waiting: list[Example] = []
    while True:
        if not waiting:
            waiting = [part[i] for i in torch.randperm(len(part), generator=generator).tolist()]
        yield waiting[: spec.batch]
        waiting = waiting[spec.batch :]


def _train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    labels: tuple[str, ...],
    spec: FinetuneSpec,
    shape: ModelSpec | None,
) -> Tuned:
    part, held = _split(examples, spec.validate_each)
    accelerator = make_accelerator(process_device(), "fp32")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_groups(model, spec, shape))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, spec))
    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda m, _, out: dropout(out, spec.dropout, m.training)),
        _head(model).register_forward_pre_hook(lambda m, given: (dropout(given[0], spec.dropout, m.training),)),
    ]
    model, optimizer = accelerator.prepare(model, optimizer)

    def loss_on(some: Sequence[Example]) -> torch.Tensor:
        batch = _batch(model, tokenizer, some, labels, spec.head)
        loss: torch.Tensor = model(**{k: v.to(accelerator.device) for k, v in batch.items()}, use_cache=False).loss
        return loss

    def validated() -> float:
        model.eval()
        with torch.no_grad():
            return loss_on(held).item()

    best, kept, kept_step, checks = math.inf, None, spec.steps, 0
    if held and spec.head == "lm":  # a classifier's head knows nothing before the first step
        best, kept, kept_step = validated(), [p.detach().clone() for p in trained], 0
    batches, loss = _batches(part, spec), math.nan
    for step in range(1, spec.steps + 1):
        model.train()
        found = loss_on(next(batches))
        loss = found.item()
        if not math.isfinite(loss):
            raise SpecError(f"fine-tuning diverged at step {step} (loss {loss}); lower learning_rate")
        accelerator.backward(found)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if held and (step % spec.check_every == 0 or step == spec.steps):
            now = validated()
            checks = 0 if now < best else checks + 1
            if now < best:
                best, kept, kept_step = now, [p.detach().clone() for p in trained], step
            if checks == spec.patience:
                break
    if kept is not None:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
    for hook in hooks:
        hook.remove()
    model = accelerator.unwrap_model(model).cpu().eval()
    return Tuned(model, tokenizer, labels, spec, kept_step, loss, best if held else None)
