"""Which models are evaluated: what a person names -> checkpoints, each with its place on the scale axes N and D.

A folder of ours says by itself where it stands; every other model is looked up by name in the scale maps. Reads no
weights and needs no torch."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.scale_maps import BUNDLED, KnownModel, ScaleMap, bare, load_scale_map, read_models
from harness.store import StoreError, read_json
from models.hub import is_hub_name
from models.spec import ModelSpec, SpecError
from tasks.errors import suggest

_STEP_FOLDER = re.compile(r"(?:checkpoint|global_?step|step)[-_]?(\d+)")
_OUR_RUN = re.compile(r"(?P<size>.+)-s(?P<seed>\d+)-[0-9a-f]{8}")
_PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1000, 143_001, 1000))


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where a series of the scale maps is published, and which of its checkpoints; the last step is also `main`."""

    family: str  # the scale map that holds it
    organisation: str
    steps: tuple[int, ...] = ()  # none: only the finished model
    revision: str = "step{step}"


# Sources: the model cards of EleutherAI/pythia-* (154 checkpoints each) and allenai/OLMo-2-*.
PUBLISHED = {
    "pythia": Published(family="pythia", organisation="EleutherAI", steps=_PYTHIA_STEPS),
    "pythia-deduped": Published(family="pythia", organisation="EleutherAI", steps=_PYTHIA_STEPS),
    "olmo-2": Published(family="olmo", organisation="allenai"),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One set of weights to be asked, and where it stands."""

    source: str  # a folder by its absolute path, which is no name on the hub; or org/name
    revision: str | None = None
    run_id: str  # of the training run: all its checkpoints share it
    model: str  # name without a seed
    size: str
    seed: int
    step: int
    numbered: bool = True  # False: finished, and nobody says at which step
    tokens: float
    n_params: float = math.nan  # NaN: to be counted
    n_params_non_embedding: float = math.nan
    flops_per_token: float | None = None  # of a run of ours, which knows; None: 6 N
    about: Mapping[str, Any] = field(default_factory=dict)  # what its own record says of the training

    @property
    def name(self) -> str:
        return f"{self.source}@{self.revision}" if self.revision else self.source


def find_checkpoints(
    models: Iterable[str] = (),
    *,
    family: str | None = None,
    sizes: Sequence[str] = (),
    steps: str | None = None,
    scales: str | Path | None = None,
) -> list[Checkpoint]:
    """Return the checkpoints of some models and of a published family, each once.

    `steps`: "all", "last" or "0,1000"; by default all of a run folder and the last of everything published. A single
    checkpoint (a folder, org/name@revision) stands for itself. Raises StoreError for what cannot be found or placed."""
    known = load_scale_map(scales=scales)
    named = [name for model in models for name in _checkpoints_of(model, known, steps)]
    if family is not None:
        named += [name for model in _family(family, sizes) for name in _checkpoints_of(model, known, steps or "last")]
    elif sizes:
        raise StoreError(f"--sizes {','.join(sizes)}: needs --family; known: {', '.join(PUBLISHED)}")
    if not named:
        raise StoreError("no model given; name folders or hub models (org/name@revision), or give --family pythia")
    once = {(Path(c.source).resolve() if Path(c.source).is_dir() else c.source, c.revision): c for c in named}
    _check_steps(list(once.values()))
    return list(once.values())


def labels(models: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Name the size of every run: by its short name, or by its model's where one short name stands for two models.

    `models`: run -> (model, short name)."""
    named: dict[str, set[str]] = {}
    for model, short in models.values():
        named.setdefault(short.lower(), set()).add(model)
    unique = all(len(group) == 1 for group in named.values())
    return {run: short if unique else model for run, (model, short) in models.items()}


def choose_steps(steps: str, published: Sequence[int], where: str) -> list[int]:
    """Return the steps that `steps` names ("all", "last", "0,1000"). Raises StoreError for one that is not there."""
    there = sorted(published)
    if steps in ("all", "last"):
        return there if steps == "all" else there[-1:]
    wanted = []
    for text in steps.split(","):
        if not text.strip().isdecimal():
            raise StoreError(f"--steps {steps}: expected all, last, or whole numbers such as 0,1000; got {text!r}")
        step = int(text)
        if step not in there:
            i = bisect.bisect(there, step)
            near = ", ".join(map(str, there[max(0, i - 1) : i + 1]))
            raise StoreError(f"{where}: has no checkpoint at step {step}; the nearest: {near}")
        wanted.append(step)
    return list(dict.fromkeys(wanted))


def _family(name: str, sizes: Sequence[str]) -> list[str]:
    """Return the hub names of a published family, smallest first."""
    if name not in PUBLISHED:
        raise StoreError(
            f"--family {name}: its checkpoints are not listed here{suggest(name, PUBLISHED)} Listed: "
            f"{', '.join(PUBLISHED)}; any other model can be named: org/name@revision"
        )
    published = PUBLISHED[name]
    there = [model for model in read_models(BUNDLED / f"{published.family}.toml") if model.series == name]
    short = {model.size.lower().removesuffix("-deduped"): model for model in there}
    for size in sizes:
        if size.lower() not in short:
            near = suggest(size, short)
            raise StoreError(f"--sizes {size}: family {name} has no such size{near} Known: {', '.join(short)}")
    chosen = [model for size, model in short.items() if not sizes or size in [s.lower() for s in sizes]]
    return [f"{published.organisation}/{m.name}" for m in sorted(chosen, key=lambda m: m.n_params_non_embedding)]


def _checkpoints_of(text: str, known: ScaleMap, steps: str | None) -> list[Checkpoint]:
    folder = Path(text)
    if folder.is_dir():
        inside = {} if (folder / "config.json").is_file() else _step_folders(folder)
        if inside:
            return [_local(inside[step], known) for step in choose_steps(steps or "all", list(inside), text)]
        if not (folder / "config.json").is_file():
            raise StoreError(
                f"{text}: has no config.json, nor a checkpoint folder such as step-1000; give one that has"
            )
        checkpoint = _local(folder, known)
        if steps not in (None, "all", "last") and str(checkpoint.step) not in map(str.strip, str(steps).split(",")):
            raise StoreError(f"{text}: its step is {checkpoint.step}, which --steps {steps} leaves out; leave one out")
        return [checkpoint]
    source, _, revision = text.partition("@")
    if not is_hub_name(source):
        raise StoreError(f"{text}: no such folder; give a checkpoint's or a run's folder, or a hub model as org/name")
    if revision or steps is None:
        return [_published(source, revision or None, known)]
    model, _ = _get(source, text, known)
    published = PUBLISHED.get(model.series)
    if published is None or not published.steps:
        if steps == "last":
            return [_published(source, None, known)]
        raise StoreError(f"{text}: its checkpoints are not listed here; name them one by one: {source}@REVISION")
    last = published.steps[-1]
    return [
        _published(source, None if step == last else published.revision.format(step=step), known)
        for step in choose_steps(steps, published.steps, text)
    ]


def _step_folders(folder: Path) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.iterdir()):
        if (match := _STEP_FOLDER.fullmatch(path.name)) and (path / "config.json").is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _local(folder: Path, known: ScaleMap) -> Checkpoint:
    """Place a checkpoint folder: by the record that stands in it, else by its name, or that of the run around it."""
    at = folder.resolve()
    if (at / "meta.json").is_file() and "tokens" in (meta := read_json(at / "meta.json")):
        return _ours(at, meta)
    step = _STEP_FOLDER.fullmatch(at.name)
    name = at.parent.name if step else at.name
    if at.parent.name == "snapshots":  # a folder of the hub's cache: models--org--name/snapshots/commit
        name = at.parent.parent.name.rpartition("--")[2]
    return _placed(str(at), None, name, f"step{int(step[1])}" if step else "", known)


def _ours(at: Path, meta: Mapping[str, Any]) -> Checkpoint:
    run = read_json(at.parent / "run.json") if (at.parent / "run.json").is_file() else {}
    if run and "spec" in run and "run_id" in run:
        train = run["spec"]["train"]
        try:
            spec = ModelSpec(**run["spec"]["model"])
        except (TypeError, SpecError) as error:
            raise StoreError(f"{at.parent / 'run.json'}: names a model that cannot be built ({error})") from None
        placed: dict[str, Any] = {
            "run_id": run["run_id"],
            "model": spec.name,
            "size": spec.name,
            "seed": train["seed"],
            "n_params": spec.n_params,
            "n_params_non_embedding": spec.n_params_non_embedding,
            "flops_per_token": spec.flops_per_token,
        }
        training = {k: train.get(k) for k in ("data_seed", "peak_lr")} | {"parametrization": spec.parametrization}
    else:  # its run is not here: the name of the folder around it may still say which one it was
        name = at.parent.name if _STEP_FOLDER.fullmatch(at.name) else at.name
        match = _OUR_RUN.fullmatch(name)
        size, seed = (match["size"], int(match["seed"])) if match else (name, 0)
        placed = {"run_id": name, "model": size, "size": size, "seed": seed}
        training = {}
    about = training | {key: meta.get(key) for key in ("phase", "train_loss", "data_digest")}
    return Checkpoint(source=str(at), step=meta["step"], tokens=meta["tokens"], about=about, **placed)


def _published(source: str, revision: str | None, known: ScaleMap) -> Checkpoint:
    return _placed(source, revision, source, revision or "", known)


def _placed(source: str, revision: str | None, name: str, at: str, known: ScaleMap) -> Checkpoint:
    """Place a checkpoint by the scale maps; `at` names its step as published, or nothing where it is finished."""
    model, seed = _get(name, f"{source}@{revision}" if revision else source, known)
    step, tokens = model.tokens_at(at)
    numbered = step is not None or not math.isnan(model.tokens_per_step)
    if step is None:
        step = round(tokens / model.tokens_per_step) if numbered else 1
    run_id = re.sub(r"[^\w.-]", "-", bare(name))
    return Checkpoint(
        source=source,
        revision=revision,
        run_id=run_id,
        model=re.sub(r"-seed-?\d+$", "", run_id) if seed else run_id,
        size=model.size or model.name,
        seed=seed,
        step=step,
        numbered=numbered,
        tokens=tokens,
        n_params=model.n_params,
        n_params_non_embedding=model.n_params_non_embedding,
    )


def _get(name: str, where: str, known: ScaleMap) -> tuple[KnownModel, int]:
    if found := known.find(name):
        return found
    near = suggest(bare(name), sorted(known.models))
    example = f'model = [{{name = "{bare(name)}", n_params = {_counted(where)}, tokens = 300e9}}]'
    raise StoreError(
        f"{where}: nobody says how many tokens {bare(name)!r} was trained on{near} Give a TOML file with --scales, in "
        f"it (with your numbers): {example}"
    )


def _counted(source: str) -> str:
    """Return the parameters of a model that is here, counted; else an example."""
    from models.pretrained import describe

    try:
        return str(describe(*source.partition("@")[::2]).n_params)
    except SpecError:
        return "70426624"


def _check_steps(checkpoints: Sequence[Checkpoint]) -> None:
    for one in checkpoints:
        for other in checkpoints:
            if one is not other and (one.run_id, one.step) == (other.run_id, other.step):
                raise StoreError(
                    f"{one.name} and {other.name} are both {one.run_id} at step {one.step}; leave one out, or tell "
                    "them apart by the name of the folder (the scale map then needs both names)"
                )
            if one.run_id == other.run_id and not one.numbered and other.numbered:
                raise StoreError(
                    f"{one.name} is finished, but nobody says at which step; add tokens_per_step for it with --scales"
                )
