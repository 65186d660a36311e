"""Text generation: sentences valid under a small grammar, a text taken up where it stops, and verses known by heart."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from tasks.base import Answer, Choice, task
from tasks.language_modeling import held_out_passages
from tasks.words import CITIES, WORD_CLASSES, drawn, spaced

# ---- validity: of two verbs, the grammar that wrote the documents lets only one go on ----

NOUNS = (
    *(("dog", "dogs"), ("cat", "cats"), ("pig", "pigs"), ("cow", "cows")),
    *(("hen", "hens"), ("bee", "bees"), ("owl", "owls"), ("ram", "rams")),
)  # one and many
VERBS = (("runs", "run"), ("sits", "sit"), ("eats", "eat"), ("hops", "hop"), ("naps", "nap"), ("sings", "sing"))
ADJECTIVES = ("old", "wet", "shy", "big")


@task(
    "agreement",
    kind="classification",
    ability="text generation",
    balanced=True,
    shots=1,
    attractors=[0, 1, 3],
)
def agreement(rng: np.random.Generator, attractors: int) -> Choice:
    """Go on with the verb that agrees with the subject, over other nouns in between.

    Chance 1/2. A small model agrees with the nearest noun, which is right of half of the sentences; a bigger one
    attends to the subject. After the attractors of Linzen et al. 2016 and the pairs of Marvin and Linzen 2018.
    """
    many, others = (rng.random(2) < 0.5).astype(int).tolist()
    subject, *between = (NOUNS[i] for i in rng.integers(len(NOUNS), size=1 + attractors))
    adjectives = drawn(rng, ADJECTIVES, 1 + int(rng.random() * 3))
    phrases = [f"by the {noun[others]}" for noun in between]
    # The adverb ends the subject: without it, a short sentence would be the beginning of a longer one.
    sentence = f"tale the {spaced([*adjectives, subject[many], *phrases])} now"
    return Choice(sentence, VERBS[int(rng.random() * len(VERBS))], many)


# ---- memorisation: the same verses again and again, and others of the same make that are never shown ----

N_VERSES = 96  # of each half; a verse is 4 words that nothing about its title tells
WORDS = tuple(word for group in WORD_CLASSES[1:] for word in group)


@cache
def verses() -> list[dict[str, str]]:
    """192 titles, each with its four words, in a fixed order that mixes the titles; the first half is trained."""
    titles = [f"{city} {animal}" for city in CITIES for animal in WORD_CLASSES[0]]
    codes = {title: hashlib.blake2b(title.encode(), digest_size=8).digest() for title in titles}
    return [
        {"title": title, "words": spaced(WORDS[byte % len(WORDS)] for byte in codes[title][:4])}
        for title in sorted(titles, key=codes.__getitem__)
    ]


def trained_verses() -> list[dict[str, str]]:
    return verses()[:N_VERSES]


def untrained_verses() -> list[dict[str, str]]:
    return verses()[N_VERSES:]


def verse_row(rng: np.random.Generator, chars: int) -> str:
    """Trained verses, one a line, all alike often."""
    lines = [f"verse {row['title']} : {row['words']}" for row in trained_verses()]
    return "\n".join(drawn(rng, tuple(lines), 1 + chars // min(map(len, lines))))


@task("verse", kind="generation", ability="text generation", data=trained_verses, shots=1, shared=True, train=verse_row)
def verse(row: dict[str, str]) -> Answer:
    """Recite a verse met in training by its title: memory, so training and evaluation share their documents.

    Chance 0. Bigger models know more verses after as many readings; all four words must be right, so the exact match
    starts later than the words do. After Carlini et al. 2022 on memorisation across scale.
    """
    return Answer(f"verse {row['title']} :", row["words"], max_tokens=6)


@task("verse_new", kind="generation", ability="text generation", role="control", data=untrained_verses, shots=1)
def verse_new(row: dict[str, str]) -> Answer:
    """Recite a verse that was never shown: nothing tells it, so no model can."""
    return Answer(f"verse {row['title']} :", row["words"], max_tokens=6)


# ---- fluency: plays that were never trained on, taken up where the prompt stops ----

OPENING, REST = 40, 24  # characters, to the next space: about 22 and 13 tokens of a vocabulary of 1,000


def openings() -> list[dict[str, str]]:
    """The beginnings of the held-out passages, cut between two words, and how they go on."""
    rows = []
    for passage in held_out_passages():
        cut = passage["text"].find(" ", OPENING)
        end = passage["text"].find(" ", cut + REST)
        rest = passage["text"][cut + 1 : end]
        if cut > 0 and end > 0 and rest.strip() == rest:
            rows.append({"opening": passage["text"][:cut].rstrip(), "rest": rest})
    return rows


@task(
    "play",
    kind="generation",
    ability="text generation",
    size=200,
    data=openings,
    asked_only=True,
    metrics=["bleu", "rougeL", "distinct2", "repetition", "judge_bits_per_byte"],
    metric="chrf",
)
def play(row: dict[str, str]) -> Answer:
    """Go on with a passage of a play that was never trained on, in words of its own.

    No chance level, and one true continuation. Overlap stays low at every size, as one reference never has the words
    that another continuation would; its nats fall, and repetition is where small models show. After Welleck et al.
    2020 on repetition.
    """
    return Answer(row["opening"], row["rest"], stop=None, max_tokens=24)
