"""The commands `harness family`: show, check, export. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.console import DEFAULT_REPORTS, JsonOption, print_table

if TYPE_CHECKING:
    from harness.family_check import FamilyCheck
    from models.ladder import Ladder
    from models.spec import ModelSpec

family_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The sizes that are trained.")

Spec = Annotated[
    str, typer.Argument(metavar="[SPEC]", help="A sweep's TOML file, or a built-in sweep: abilities, demo, smoke.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command `harness`."""
    app.add_typer(family_app, name="family")


@family_app.command("show")
def family_show(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="[SPEC|LADDER]", help="A sweep (abilities, demo, smoke, a TOML file) or a ladder: micro, text."
        ),
    ] = "demo",
    as_json: JsonOption = False,
) -> None:
    """Show the sizes of a sweep or a ladder: shape, both parameter counts, FLOPs per token, tokens, compute."""
    import pandas as pd

    from models.ladder import LADDERS, TOKENS_PER_PARAM, optimal_tokens

    ladder = LADDERS.get(spec)
    if ladder is not None:
        models = [(model, optimal_tokens(model)) for model in ladder.models]
        rows = [_row(model, tokens, model.flops_per_token * tokens) for model, tokens in models]
    else:
        rows = [_row(run.model, run.train.horizon, run.flops) for run in _runs(spec)]
    print_table(pd.DataFrame(rows), as_json=as_json)
    if ladder is not None and not as_json:
        print(f"\ntokens: {TOKENS_PER_PARAM} per parameter of blocks and head\n{_in_a_spec(ladder)}")


@family_app.command("check")
def family_check(
    spec: Spec = "demo",
    steps: Annotated[
        int | None, typer.Option("--steps", min=3, help="Of each run of the bracket; 300 by default.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", metavar="A,B,C", help="Of the bracket; smallest, middle, largest by default."),
    ] = None,
    widths: Annotated[
        str | None, typer.Option("--widths", metavar="D,D,D,D", help="Of the coordinate check, at the base depth.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option("--depths", metavar="L,L,L", help="Of the coordinate check, at the base width.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For figure and JSON; reports/SPEC-family by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify that one learning rate serves all sizes: activations move alike, and the best rate stays (else exit 1).

    Trains short runs of the sweep's own recipe on its own text: a few steps over widths and depths, and a few hundred
    at three sizes and five learning rates."""
    import torch

    from harness.family_check import BRACKET_STEPS, check_family
    from harness.figures.base import save
    from harness.figures.transfer import transfer_data, transfer_figure
    from harness.spec import load_sweep
    from harness.store import write_json

    torch.set_num_threads(1)
    sweep = load_sweep(spec)
    folder = out or DEFAULT_REPORTS / f"{sweep.spec.name}-family"
    folder.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found out before the work
    found = check_family(
        sweep,
        steps=steps or BRACKET_STEPS,
        sizes=_listed(sizes),
        widths=_numbers("--widths", widths),
        depths=_numbers("--depths", depths),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    measured = found.to_json()
    write_json(folder / "transfer.json", measured)
    data = transfer_data(measured)
    save(transfer_figure(data), folder, "transfer", data)
    if as_json:
        print(json.dumps(measured, indent=2))
    else:
        _print_check(found)
        print(f"CPU time: {found.cpu_seconds:.0f} s; figure and numbers: {folder}/transfer.png, .svg, .csv, .json")
    if not found.verified:
        raise typer.Exit(1)


@family_app.command("export")
def family_export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A step-* folder of a run of ours.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights written: fp32 or bf16.")] = "fp32",
) -> None:
    """Write a checkpoint as a plain Llama: same logits, all multipliers folded into the weights."""
    from models.fold import export

    record = export(checkpoint, out, dtype=dtype)
    print(
        f"{out}: LlamaForCausalLM in {dtype}, {record['tokens']:,} tokens seen; logits differ by at most "
        f"{record['max_logit_difference']:.1e} (the largest is {record['max_logit']:.1f})"
    )


# ---- reading and printing ----


def _runs(spec: str) -> list[Any]:
    """Return one run of every size of a sweep. Raises InputError, which names the ladders, too."""
    from harness.spec import SWEEPS, InputError, load_sweep
    from models.ladder import LADDERS
    from tasks.errors import suggest

    known = [*sorted(file.stem for file in SWEEPS.glob("*.toml")), *LADDERS]
    if spec not in known and not Path(spec).exists():
        raise InputError(
            f"{spec}: no such file, built-in sweep or ladder{suggest(spec, known)} Known: {', '.join(known)}"
        )
    return list({run.model.name: run for run in load_sweep(spec).runs}.values())


def _row(model: ModelSpec, tokens: int, flops: float) -> dict[str, Any]:
    return {
        "size": model.name,
        "n_layer": model.n_layer,
        "d_model": model.d_model,
        "n_head": model.n_head,
        "head_dim": model.head_dim,
        "d_ff": model.d_ff,
        "n_params_non_embedding": model.n_params_non_embedding,
        "n_params": model.n_params,
        "flops_per_token": model.flops_per_token,
        "tokens": tokens,
        "flops": flops,
    }


def _in_a_spec(ladder: Ladder) -> str:
    """Say how a sweep's file names the sizes of a ladder."""
    fields = ("vocab_size", "context_length", "base_width", "base_depth")
    shared = "\n".join(f"{name} = {getattr(ladder, name)}" for name in fields)
    sizes = json.dumps(ladder.sizes)
    return f"in a sweep's file, with as many of the sizes as you want:\n[family]\nsizes = {sizes}\n{shared}"


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str | None) -> list[int] | None:
    from harness.spec import InputError

    parts = _listed(text)
    if parts is not None and not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} {text}: expected whole numbers above 0, for example 32,64,128,256")
    return None if parts is None else [int(part) for part in parts]


def _print_check(found: FamilyCheck) -> None:
    import pandas as pd

    from harness.family_check import LARGEST_MOVE, LARGEST_SLOPE

    kinds = {slope.kind: {"activations": slope.kind} for slope in found.slopes}
    for slope in found.slopes:
        kinds[slope.kind][f"slope over {slope.along}"] = "-" if slope.slope is None else f"{slope.slope:+.2f}"
    print_table(pd.DataFrame(list(kinds.values())), as_json=False)
    bad = [f"{slope.kind} over {slope.along}" for slope in found.slopes if not slope.verified]
    print(
        f"coordinate check, {found.coordinate_steps} steps: {_verdict(found.coordinates_verified)} "
        f"(|slope| of log change against log scale must be below {LARGEST_SLOPE:g}"
        + (f"; it is not for {', '.join(bad)})\n" if bad else ")\n")
    )
    rows = [
        {"size": optimum.size}
        | {f"x {factor:g}": "diverged" if loss is None else f"{loss:.3f}" for factor, loss in optimum.losses.items()}
        | {"best factor": "-" if optimum.best_factor is None else f"{optimum.best_factor:.2f}"}
        for optimum in found.optima
    ]
    print_table(pd.DataFrame(rows), as_json=False)
    outside = [optimum.size for optimum in found.optima if optimum.best_factor is None]
    moved = "an unknown amount" if found.moved is None else f"{found.moved:.2f} octaves"
    print(
        f"learning rate, {found.bracket_steps} steps: {_verdict(found.rate_verified)} "
        f"(the best factor of peak_lr={found.train.peak_lr:g} moves by {moved}, must be below {LARGEST_MOVE:g}"
        + (f"; not bracketed at {', '.join(outside)})" if outside else ")")
    )


def _verdict(holds: bool) -> str:
    return "transfer verified" if holds else "transfer not verified"
