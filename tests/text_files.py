"""Small text files of every format, and the sources and looks the tests take of them."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.corpus_texts import Source, Texts, look

WORDS = "the a old king sea ship went came saw under over grey tall house where they lived then night day road"


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS.split(), k=rng.randint(20, 60))).capitalize() + "." for _ in range(n)]


def write(path: Path, texts: list[str], field: str = "text") -> Path:
    """Write documents in the format of the file's name."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        pq.write_table(pa.table({field: texts, "n": range(len(texts))}), path, row_group_size=7)
        return path
    text = "\n\n".join(texts) if name.endswith(".txt") else "".join(json.dumps({field: t}) + "\n" for t in texts)
    if path.name.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text.encode())
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def source(*files: str, **options) -> Source:
    return Source(name="tale", files=files, **{"held_out": 0.1, **options})


def looked(folder: Path, *files: str, **options) -> Texts:
    return look(source(*files, **options), folder)
