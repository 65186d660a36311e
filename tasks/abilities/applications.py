"""Applications in miniature, in English and Chinese: translation, summary, dialogue, sentiment and a filter of mail."""

from __future__ import annotations

from math import comb

import numpy as np

from tasks.base import Answer, Choice, task
from tasks.qa import episode
from tasks.words import FIRST_NAMES, NEUTRAL, WORD_CLASSES, distinct, drawn, spaced

# ---- translation into an invented language and back ----
#
# English: adjective noun verb adjective noun, the verb agrees. The other: subject object verb, adjectives after their
# noun, many marked by a word of its own after the noun, and the verb by another one where the subject is many.

NOUNS = {
    **{"dog": "bo", "cat": "du", "pig": "fa", "cow": "gi"},
    **{"hen": "ho", "bee": "ju", "owl": "ke", "ram": "lo"},
}
ADJECTIVES = {"red": "mu", "blue": "ni", "gold": "po", "pink": "ru"}
VERBS = {"see": "sa", "hear": "te", "love": "vu", "fear": "yo"}
MANY, MANY_DO = "im", "ut"


def _phrase(rng: np.random.Generator) -> tuple[str, str, bool]:
    """A noun phrase in both languages, and whether it is of many."""
    noun, many = tuple(NOUNS)[int(rng.random() * len(NOUNS))], bool(rng.random() < 0.5)
    adjective = drawn(rng, tuple(ADJECTIVES), int(rng.random() * 2))
    english = [*adjective, f"{noun}s" if many else noun]
    other = [NOUNS[noun], *[MANY] * many, *(ADJECTIVES[word] for word in adjective)]
    return spaced(english), spaced(other), many


@task(
    "translation",
    kind="generation",
    ability="generalisation",
    shots=1,
    metrics=["bleu", "chrf"],
    to=["invented", "english"],
)
def translation(rng: np.random.Generator, to: str) -> Answer:
    """Translate new sentences to or from a language of another order and agreement.

    Chance 0. A small model learns the words, by which BLEU and chrF already rise; the whole sentence is right once
    order and agreement are. After COGS (Kim and Linzen 2020), where known words meet in new sentences.
    """
    (subject, first, many), (thing, second, _) = _phrase(rng), _phrase(rng)
    verb = tuple(VERBS)[int(rng.random() * len(VERBS))]
    english = f"{subject} {verb if many else verb + 's'} {thing}"
    other = spaced([first, second, VERBS[verb], *[MANY_DO] * many])
    source, target = (english, other) if to == "invented" else (other, english)
    return Answer(f"say {source} ->", target, max_tokens=10)


# ---- translation between Chinese and English ----

SUBJECTS = {"我": "i", "你": "you", "他": "he", "她": "she"}
DEEDS = {"看": "see", "买": "buy", "爱": "love", "有": "have", "找": "seek"}
LOOKS = {"红": "red", "大": "big", "新": "new", "老": "old"}
THINGS = {  # each with the measure word that Chinese counts it by
    **{"猫": ("cat", "只"), "狗": ("dog", "只"), "鸟": ("bird", "只"), "书": ("book", "本")},
    **{"车": ("car", "辆"), "花": ("flower", "朵"), "鱼": ("fish", "条"), "画": ("painting", "幅")},
}


def _sentences(rng: np.random.Generator) -> tuple[str, str]:
    """A sentence in Chinese, its words apart, and in English: who does what to one thing, or not."""
    who, deed, look, thing = (
        tuple(words)[int(rng.random() * len(words))] for words in (SUBJECTS, DEEDS, LOOKS, THINGS)
    )
    english, measure = THINGS[thing]
    adjective = [look] * int(rng.random() * 2)
    denied = rng.random() < 0.5
    third = who in "他她"
    verb = DEEDS[deed] if denied or not third else {"have": "has"}.get(DEEDS[deed], f"{DEEDS[deed]}s")
    no = ["does" if third else "do", "not"] if denied else []
    negation = ["没" if deed == "有" else "不"] if denied else []
    chinese = [who, *negation, deed, "一", measure, *adjective, thing]
    return spaced(chinese), spaced([SUBJECTS[who], *no, verb, "one", *(LOOKS[word] for word in adjective), english])


@task("zh_to_en", kind="generation", ability="generalisation", shots=1, metrics=["bleu", "chrf"])
def zh_to_en(rng: np.random.Generator) -> Answer:
    """Translate a Chinese sentence into English: the verb agrees, measure words go.

    Chance 0; what a bigger model adds is as in `translation`: the words come first, the whole sentence later. Short
    sentences such as those of the Tatoeba challenge (Tiedemann 2020).
    """
    chinese, english = _sentences(rng)
    return Answer(f"译 {chinese} ->", english, max_tokens=9)


@task("en_to_zh", kind="generation", ability="generalisation", language="zh", shots=1, metrics=["bleu", "chrf"])
def en_to_zh(rng: np.random.Generator) -> Answer:
    """Translate an English sentence into Chinese: the noun decides the measure word.

    Chance 0. The sentences are those of `zh_to_en` (Tiedemann 2020); 没 denies 有, and 不 the other verbs.
    """
    chinese, english = _sentences(rng)
    return Answer(f"put {english} ->", chinese, max_tokens=9)


# ---- summary ----


def one_pattern(events: int) -> dict[str, float]:
    """Copying the events at the same places of every story, as if one person were always met there."""
    return {"exact_match": 1 / comb(events, events // 2 + 1)}


@task(
    "gist",
    kind="generation",
    ability="text generation",
    shots=1,
    metrics=["rouge1", "rouge2", "rougeL"],
    shortcut=one_pattern,
    events=[3, 5],
)
def gist(rng: np.random.Generator, events: int) -> Answer:
    """Sum up a story: who is met most often, and all that this one has, in order.

    Chance 0, and 1/3 and 1/10 by always copying the same places; the others have one thing each. ROUGE rises once a
    model writes any name and things of the story; the whole gist takes counting and collecting. After extractive
    summaries scored by ROUGE (Lin 2004).
    """
    share = events // 2 + 1
    hero, *others = distinct(rng, FIRST_NAMES, events - share + 1)
    people = [*[hero] * share, *others]
    order = rng.permutation(events).tolist()
    things = distinct(rng, WORD_CLASSES[0], events)
    told = [f"{people[i]} {thing}" for i, thing in zip(order, things, strict=True)]
    kept = [thing for i, thing in zip(order, things, strict=True) if people[i] == hero]
    return Answer(f"gist {' , '.join(told)} ->", spaced([hero, *kept]), max_tokens=share + 3)


# ---- dialogue ----

N_SPEAKERS = 3


def draw_turns(rng: np.random.Generator, updates: int) -> tuple[str, dict[str, str], list[str]]:
    """Orders of three people in turn, some of whom order again; what each wants in the end; who ordered twice."""
    people = distinct(rng, FIRST_NAMES, N_SPEAKERS)
    turns = [*people, *people[:updates]]
    turns = [turns[i] for i in rng.random(len(turns)).argsort()]
    orders = list(zip(turns, distinct(rng, WORD_CLASSES[2], len(turns)), strict=True))
    told = " ; ".join(f"{person} {dish}" for person, dish in orders)
    return f"talk {told}", dict(orders), people[:updates]


def turns_row(rng: np.random.Generator, chars: int) -> str:
    """One dialogue with up to two new orders, and questions after everyone's last one until the row is full."""
    while True:
        told, wanted, _ = draw_turns(rng, int(rng.random() * 3))
        row = episode(rng, told, wanted, (chars + len(told)) // 2)  # a pair takes twice the four characters of letters
        if row is not None:
            return row


def either_order(updates: int) -> dict[str, float]:
    """Looking up the person and taking either of two orders; the dish named last, 2 / (3 + updates), is no better.

    Where nobody ordered again, looking up is the ability itself and no shortcut."""
    return {"acc": 0.5 if updates else 1 / N_SPEAKERS}


@task("dialogue", kind="qa", ability="adaptation", train=turns_row, shortcut=either_order, updates=[0, 1, 2])
def dialogue(rng: np.random.Generator, updates: int) -> Choice:
    """Say what someone wants after several turns, of whom some changed their mind.

    The choices are all dishes named, chance 1/3, 1/4 and 1/5; where someone ordered again, 1/2 by looking them up and
    taking either order. The later counts: a state has to be kept up to date. After dialogue state tracking as in
    MultiWOZ (Budzianowski 2018).
    """
    told, wanted, changed = draw_turns(rng, updates)
    person = drawn(rng, tuple(changed or wanted), 1)[0]
    dishes = tuple(told.replace(";", "").split()[2::2])
    return Choice(f"{told} ? {person}", distinct(rng, dishes, len(dishes)), wanted[person])


# ---- sentiment in Chinese ----

GOOD, BAD, PLAIN = tuple("好美乐喜甜真"), tuple("坏丑苦悲恶假"), tuple("天路门水")
N_MOODS, NOT = 5, "不"


def without_negation(negated: int) -> dict[str, float]:
    """The majority of the words as they stand: of a majority of m, some are among those that 不 turns round.

    Where none is turned round, that is the ability itself and no shortcut."""
    if not negated:
        return {"acc": 0.5}
    shares = [
        comb(m, turned) * comb(N_MOODS - m, negated - turned) / comb(N_MOODS, negated)
        for m in (3, 4, 5)
        for turned in range(negated + 1)
        if m - 2 * turned + negated > N_MOODS / 2
    ]
    return {"acc": sum(shares) / 3}


@task(
    "sentiment_zh",
    kind="classification",
    ability="generalisation",
    language="zh",
    balanced=True,
    shots=1,
    shortcut=without_negation,
    negated=[0, 2],
)
def sentiment_zh(rng: np.random.Generator, negated: int) -> Choice:
    """Say whether most of five Chinese words are good or bad; 不 turns a word round.

    Chance 1/2. Adding up the words comes with size, smoothly; each 不 has to be bound to its word first. After
    the negations of the Stanford Sentiment Treebank (Socher et al. 2013).
    """
    answer, majority = int(rng.random() * 2), 3 + int(rng.random() * 3)
    sides = [answer] * majority + [1 - answer] * (N_MOODS - majority)
    turned = [i < negated for i in rng.permutation(N_MOODS)]
    parts = [
        f"{NOT} {drawn(rng, (GOOD, BAD)[1 - side], 1)[0]}" if turn else drawn(rng, (GOOD, BAD)[side], 1)[0]
        for side, turn in zip(sides, turned, strict=True)
    ]
    parts += drawn(rng, PLAIN, 2)
    return Choice(f"情 {spaced(distinct(rng, tuple(parts), len(parts)))} ->", ("正", "负"), answer)


# ---- a filter of mail ----

BAIT = ("win", "cash", "prize", "offer", "loan", "deal")
CONTACTS, STRANGERS = FIRST_NAMES[:8], FIRST_NAMES[8:]
N_WORDS = 6


def one_sign() -> dict[str, float]:
    """Going by the sender alone, or by the words alone: each lets half of the wanted mail through, and all spam be."""
    return {"acc": 0.75}


@task("spam", kind="classification", ability="complex patterns", balanced=True, shots=1, shortcut=one_sign)
def spam(rng: np.random.Generator) -> Choice:
    """Sort out mail from strangers with two baits or more; contacts may use them.

    Chance 1/2, and 3/4 by the sender or the words alone, which small models stop at; a bigger one joins the two. After
    the filtering of short messages (Almeida et al. 2011).
    """
    wanted = int(rng.random() * 2)
    known = wanted and rng.random() < 0.5
    n_bait = 2 + int(rng.random() * 2) if known or not wanted else int(rng.random() * 2)
    sender = drawn(rng, CONTACTS if known else STRANGERS, 1)[0]
    words = [*drawn(rng, BAIT, n_bait), *drawn(rng, NEUTRAL, N_WORDS - n_bait)]
    return Choice(f"mail {sender} : {spaced(distinct(rng, tuple(words), N_WORDS))} ->", ("spam", "fine"), wanted)
