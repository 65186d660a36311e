"""Where the numbers of a page come from, and how to make them again."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.report.tables import Tables
from harness.wording import AXES, DASH, label_name, loads, natural

FACTS = ("parametrization", "peak_lr", "precision", "attention", "device", "tokenizer_digest", "data_digest")


def provenance(page: Tables) -> dict[str, Any]:
    """Settings, versions, digests, and the commands that make the numbers again."""
    unknown = f"{DASH} (not in the imported files)" if page.imported else DASH
    facts = [
        (column.replace("_", " "), ", ".join(str(v) for v in page.runs[column].dropna().unique()) or unknown)
        for column in FACTS
    ]
    versions: dict[str, list[str]] = {}
    for entry in page.ledger:
        for key, value in (entry.get("environment") or {}).items():
            if str(value) not in versions.setdefault(key, []):
                versions[key].append(str(value))
    built_in = (Path(__file__).parent.parent / "sweeps" / f"{page.name}.toml").is_file()
    source = page.name if built_in else f"{page.name}.toml"
    made_here = not page.imported and not page.spec.get("evaluated")
    drawn_with = {p: metadata.version(p) for p in ("numpy", "pandas", "matplotlib", "seaborn", "jinja2")}
    steps = [f"analyze {page.folder}", f"report {page.folder}"]
    weights = page.runs[page.runs["weights_digest"].notna()]
    return {
        "facts": facts,
        "versions": [(key, ", ".join(values)) for key, values in sorted(versions.items())],
        "drawn_with": ", ".join(f"{key} {value}" for key, value in drawn_with.items()),
        "weights": weights[["run_id", "step", "weights_digest"]].to_dict("records"),
        "tasks": page.tasks,
        "commands": [f"harness {step}" for step in ([f"sweep {source}"] if made_here else []) + steps],
        "imported": page.imported,
        "spec": json.dumps(page.spec, indent=2, ensure_ascii=False, default=str),
    }


def trace(page: Tables) -> dict[str, Any]:
    """From every number back to its rows: digests of the verdicts' score rows, recipes of the fits, tables and code."""
    place = page.task_order
    verdicts = [
        {k: v[k] for k in ("task", "level", "metric")}
        | {"label": label_name(v["label"]), "digest": v["rows_digest"], "axis": AXES.get(v["axis"], str(v["axis"]))}
        for v in page.verdicts.to_dict("records")
        if isinstance(v["rows_digest"], str)
    ]
    verdicts.sort(key=lambda v: (place.get(v["task"], len(place)), str(v["task"]), natural(v["level"]), v["metric"]))
    fits = [
        {"subject": f["subject"], "x": f["x"], "form": f["form"], "recipe": _pairs(loads(f["recipe"]))}
        for f in page.fits.to_dict("records")
    ]
    record = _record(page.path / "imported" / "source.json")
    return {
        "verdicts": verdicts,
        "fits": [f for f in fits if f["recipe"]],
        "analysis": _record(page.path / "analysis.json"),
        "notes": next((value.split("\n") for key, value in record if key == "notes"), []),
        "source": [(key, value) for key, value in record if key != "notes"],
    }


def _pairs(recipe: dict[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in recipe.items())


def _record(path: Path) -> list[tuple[str, str]]:
    """Return what a JSON record says, a pair of texts per entry; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [(path.name, f"cannot be read ({error})")]
    if not isinstance(found, dict):
        return [(path.name, "is not a record")]
    return [pair for key, value in found.items() for pair in _told(key.replace("_", " "), value)]


def _told(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [(f"{key}: {name}", str(part)) for name, part in sorted(value.items()) if part not in (None, {}, [])]
    if isinstance(value, list):
        lines = [" ".join(str(v) for v in item.values()) if isinstance(item, dict) else str(item) for item in value]
        return [(key, "\n".join(lines))] if lines else []
    return [(key, str(value))]
