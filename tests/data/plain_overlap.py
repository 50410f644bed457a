"""Overlap and splits by ratio the plain way, with sets of words and every scan made again: what the quick way gives.

It was the program's own until rows were held as numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from alignment.data.text import passage_text, prompt_of, prompt_text, system_text, units
from alignment.records import Record

COMMON = 50
"""A run of words in more texts than this is boilerplate (an instruction around each row) and proves nothing; among
fewer than 4 x COMMON texts the limit is a quarter of them, but at least FEW."""
FEW = 10
SHORT = 5
"""Texts of fewer units are compared as whole prompts only."""
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """What is compared of a row; made once where a row is compared often.

    Attributes:
        prompt, passage: in normal form; the prompt without its system message, unless that is what the row is about
            (`texts_of`); passage is "" where the row has none.
        parts: units of passage and question, or of each user turn where there is no passage; none of a generic
            question about a system message, which is compared as a whole prompt only.
        name: rows with the same name are about one text.
    """

    id: str
    prompt: str
    passage: str
    parts: tuple[list[str], ...]
    name: str


def texts_of(records: Sequence[Record], n: int = 8) -> list[Text]:
    """What is compared of each row, in order.

    A system message that many rows share is a role and counts for nothing. One of at least 2n units, before a
    conversation of fewer and before at most FEW different ones, is a text that is asked about ("Sum up the log."): the
    same question about another such text is another row.
    """
    prompts = [prompt_text(record) for record in records]
    told = [system_text(record) for record in records]
    asked: defaultdict[str, set[str]] = defaultdict(set)
    for system, prompt in zip(told, prompts, strict=True):
        asked[system].add(prompt)
    subject = {system: len(others) <= FEW and len(units(system)) >= 2 * n for system, others in asked.items()}
    return [_text(record, prompt, system if subject[system] and len(units(prompt)) < 2 * n else "")
            for record, prompt, system in zip(records, prompts, told, strict=True)]


def _text(record: Record, prompt: str, subject: str) -> Text:
    passage = passage_text(record)
    if passage:
        parts = [passage, str(record.meta.get("question", ""))]
    elif subject:
        parts, prompt = [], f"{subject}\n{prompt}"
    else:
        parts = [turn["content"] for turn in prompt_of(record) if turn["role"] == "user"]
    name = passage or str(record.meta.get("group") or prompt)
    return Text(record.id, prompt, passage, tuple(units(part) for part in parts), name)


def find_overlap(
    test: Sequence[Record], seen: Sequence[Record], n: int = 8, share: float = 0.5
) -> dict[str, tuple[str, str]]:
    """Test id -> (id of a seen row, reason).

    Reasons: `same-id`, `same-prompt`, `same-passage`, `shared-text` (at least `share` of the n-grams of passage and
    question; the row named is the first to hold most of them). Units are words, in scripts without blanks characters
    (`alignment.words`); system messages count where `texts_of` says so. A text under 2n units has too few n-grams: it
    overlaps when it stands as a whole in a seen text under 4n units, so that short generic questions are not taken for
    copies of each other.
    """
    texts = texts_of([*test, *seen], n)
    return find_text_overlap(texts[:len(test)], texts[len(test):], n, share)


def find_text_overlap(
    test: Sequence[Text], seen: Sequence[Text], n: int = 8, share: float = 0.5
) -> dict[str, tuple[str, str]]:
    """`find_overlap` of texts that are at hand."""
    ids = {text.id for text in seen}
    prompts: dict[str, str] = {}
    passages: dict[str, str] = {}
    for text in seen:
        prompts.setdefault(text.prompt, text.id)
        passages.setdefault(text.passage, text.id)
    found: dict[str, tuple[str, str]] = {}
    rest = []
    for text in test:
        if text.id in ids:
            found[text.id] = (text.id, "same-id")
        elif text.prompt in prompts:
            found[text.id] = (prompts[text.prompt], "same-prompt")
        elif text.passage in passages and text.passage and len(text.parts[0]) >= SHORT:
            found[text.id] = (passages[text.passage], "same-passage")
        else:
            rest.append(text)
    found.update((test_id, (seen_id, "shared-text")) for test_id, seen_id in _shared(rest, seen, n, share))
    return {text.id: found[text.id] for text in test if text.id in found}


@dataclass
class _Hits:
    """An n-gram of the test that seen rows hold: the first of them, and the different texts it occurs in."""

    seen: str
    texts: set[str] = field(default_factory=set)

    def add(self, name: str) -> None:
        if len(self.texts) <= COMMON:
            self.texts.add(name)


def _shared(test: Sequence[Text], seen: Sequence[Text], n: int, share: float) -> Iterator[tuple[str, str]]:
    """(test id, seen id) of rows that share runs of words."""
    rows = [(text, *_grams(text, n)) for text in test]
    wanted = set().union(*(grams for _, grams, _ in rows))
    hits, whole = _stream(seen, wanted, {short for _, _, short in rows if short}, n)
    limit = min(COMMON, max(FEW, len({text.name for text in chain(test, seen)}) // 4))
    held = [(text, grams, short, hits.keys() & grams) for text, grams, short in rows]
    for text, _, _, common in held:
        for gram in common:
            hits[gram].add(text.name)
    for text, grams, short, common in held:
        telling = [hits[gram].seen for gram in common if len(hits[gram].texts) <= limit]
        boilerplate = len(common) - len(telling)
        if telling and len(telling) >= share * (len(grams) - boilerplate):
            # Sorted, because sets have another order in each process and equal counts are first come, first named.
            yield text.id, Counter(sorted(telling)).most_common(1)[0][0]
        elif short in whole:
            yield text.id, whole[short]


def _stream(
    seen: Iterable[Text], wanted: set[Gram], short: set[Gram], n: int
) -> tuple[dict[Gram, _Hits], dict[Gram, str]]:
    """What the seen rows hold of the test's n-grams (hits) and of its short texts (id of the first such row)."""
    hits: dict[Gram, _Hits] = {}
    whole: dict[Gram, str] = {}
    sizes = {len(gram) for gram in short}
    done: set[str] = set()
    for text in seen:
        # A passage with a hundred questions is read once.
        for part in text.parts[1 if text.passage in done else 0:]:
            for gram in wanted.intersection(_ngrams(part, n)):
                hits.setdefault(gram, _Hits(text.id)).add(text.name)
        if text.passage:
            done.add(text.passage)
        if sizes and sum(map(len, text.parts)) < 4 * n:
            units = list(chain.from_iterable(text.parts))
            for size in sizes:
                for gram in short.intersection(_ngrams(units, size)):
                    whole.setdefault(gram, text.id)
    return hits, whole


def _grams(text: Text, n: int) -> tuple[set[Gram], Gram]:
    """(n-grams, ()) of a long row; (empty, all its units) of a short one; nothing of one that is too short."""
    length = sum(map(len, text.parts))
    if length < 2 * n:
        return set(), tuple(chain.from_iterable(text.parts)) if length >= SHORT else ()
    # A short question is asked of many passages; beside a passage only a long one is telling.
    parts = [part for index, part in enumerate(text.parts) if not text.passage or index == 0 or len(part) >= 2 * n]
    return {gram for part in parts for gram in _ngrams(part, n)}, ()


def _ngrams(part: Sequence[str], n: int) -> Iterator[Gram]:
    return zip(*(part[start:] for start in range(n)), strict=False)


def by_ratio(
    records: Sequence[Record], ratios: Mapping[str, float], seed: int
) -> tuple[dict[str, list[Record]], list[Record]]:
    """(split name -> its rows, rows outside all ratios), each in the order of `records`.

    No row of a split overlaps another split. Where a cut would part two rows that overlap, they become one piece and
    the cut is made again; each time there are fewer pieces, so it ends.

    Args:
        ratios: split name -> share of the rows, in the order in which they are cut; their sum is at most 1.
        seed: another seed, another order of the pieces.
    """
    texts = {text.id: text for text in texts_of(records)}
    ties: list[tuple[str, str]] = []
    while True:
        splits, outside = _cut(records, ratios, _pieces(records, texts, ties, seed))
        parted = []
        for name, rows in splits.items():
            others = [texts[record.id] for other in splits if other != name for record in splits[other]]
            overlap = find_text_overlap([texts[record.id] for record in rows], others)
            parted += [(row, other) for row, (other, _) in overlap.items()]
        if not parted:
            return splits, outside
        ties += parted


def _cut(
    records: Sequence[Record], ratios: Mapping[str, float], pieces: Sequence[tuple[bytes, list[int]]]
) -> tuple[dict[str, list[Record]], list[Record]]:
    """Divide the pieces in their order; the one that a border falls into goes where its middle lies."""
    target: dict[int, str] = {}
    bounds, reached = [], 0.0
    for name, ratio in ratios.items():
        reached += ratio
        bounds.append((name, reached * len(records)))
    filled = 0
    for _, members in sorted(pieces):
        middle = filled + len(members) / 2
        name = next((name for name, bound in bounds if middle <= bound + 1e-6), "")
        target.update(dict.fromkeys(members, name))
        filled += len(members)
    made: dict[str, list[Record]] = {name: [] for name in ratios}
    outside: list[Record] = []
    for index, record in enumerate(records):
        made.get(target[index], outside).append(record)
    return made, outside


def _pieces(
    records: Sequence[Record], texts: Mapping[str, Text], ties: Iterable[tuple[str, str]], seed: int
) -> list[tuple[bytes, list[int]]]:
    """(place in the order, row numbers) of each set of rows that must stay together (union-find).

    Ties are pairs of row ids.
    """
    parent = list(range(len(records)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    names = [_names(record, texts[record.id]) for record in records]
    for index, row_names in enumerate(names):
        for name in row_names:
            parent[root(index)] = root(first.setdefault(name, index))
    numbers = {record.id: index for index, record in enumerate(records)}
    for one, other in ties:
        parent[root(numbers[one])] = root(numbers[other])
    members: dict[int, list[int]] = {}
    places: dict[int, bytes] = {}
    for index, row_names in enumerate(names):
        # Only the strongest name counts, so that one more question about a passage does not move the passage.
        place = hashlib.sha256(f"{seed}\0{row_names[0]}".encode()).digest()
        top = root(index)
        members.setdefault(top, []).append(index)
        places[top] = min(place, places.get(top, place))
    return [(places[top], rows) for top, rows in members.items()]


def _names(record: Record, text: Text) -> list[str]:
    """What ties a row to others, strongest first."""
    group = record.meta.get("group")
    names = [] if group is None else [f"group {group}"]
    return [*names, *([f"passage {text.passage}"] if text.passage else []), f"prompt {text.prompt}"]
