"""Documents of a Hugging Face data set, read from its memory-mapped files; needs the package `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import InputError
from tasks.errors import suggest


def fingerprint(name: str, folder: Path, *, config: str | None, split: str) -> str:
    """What `datasets` names this state of the data set by."""
    return str(_load(name, folder, config, split)._fingerprint)


def read_hub(name: str, folder: Path, *, config: str | None, split: str, field: str) -> Iterator[str]:
    """The texts of a split, those without any visible character left out. Raises InputError, also without the package.

    name: a folder that `save_to_disk` wrote or one of data files (a relative path starts in `folder`), else a name on
    the hub. No code of a data set is run."""
    found = _load(name, folder, config, split)
    if field not in found.column_names:
        raise InputError(
            f"the data set {name!r} has no column {field!r}{suggest(field, found.column_names)} "
            f"It has: {', '.join(found.column_names)}; name the text's with field ="
        )
    for number, row in enumerate(found.select_columns([field]).with_format(None)):
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise InputError(f"the data set {name!r}, row {number}: {field!r} must be a string, got {kind}")
        if row[field].strip():
            yield row[field]


def _load(name: str, folder: Path, config: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"the data set {name!r} is read by the package datasets; pip install 'emergence-harness[datasets]'"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise InputError(
            f"datasets {datasets.__version__} may run code that a data set brings, datasets 4 does not; "
            "pip install 'emergence-harness[datasets]'"
        )
    place = folder / name
    try:
        if (place / "state.json").is_file():
            return datasets.load_from_disk(str(place))
        if (place / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(place))
            if split not in splits:
                raise InputError(
                    f"the data set {name!r} has no split {split!r}{suggest(split, splits)} It has: {', '.join(splits)}"
                )
            return splits[split]
        return datasets.load_dataset(str(place) if place.is_dir() else name, name=config, split=split)
    except InputError:
        raise
    except Exception as error:  # whatever the package raises becomes one line
        reason = " ".join(str(error.__cause__ or error).split())
        if isinstance(error, ConnectionError):
            raise InputError(
                f"cannot load the data set {name!r}: it is no local folder, not in the cache, and the hub is out of "
                f"reach ({reason}); ask for it once online, or give a folder that save_to_disk wrote"
            ) from error
        raise InputError(f"cannot load the data set {name!r}: {type(error).__name__}: {reason}") from error
