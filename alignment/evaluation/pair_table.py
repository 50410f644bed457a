"""Judges over the same pairs: the table of results.json, its metrics, and the lines of pairs.jsonl.

Joins what judges said (judges.py) with what is known of the pairs, by row id; the numbers are agreement.py's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.config import EvaluatePairs
from alignment.evaluation.agreement import (
    Side,
    agreement_of,
    by_length,
    by_place,
    calibration,
    section_shares,
    verdict_of,
)
from alignment.evaluation.judges import Judgement
from alignment.evaluation.metrics import finite_mean, histogram, win_rate
from alignment.evaluation.results import kind_of, without_nan
from alignment.records import Record
from alignment.words import words

Said = Mapping[str, Mapping[str, Judgement]]
"""Judge -> row id -> what it says."""


class PairTable:
    """What all judges say of the same pairs.

    Args:
        records: preferences and ties, in the split's order.
        seed: of the bootstrap.
    """

    def __init__(self, stage: EvaluatePairs, records: Sequence[Record], said: Said, seed: int) -> None:
        self.stage, self.said = stage, said
        self.draws = {"resamples": stage.bootstrap, "seed": seed}
        self.records = list(records)
        self.preferred = [record for record in records if record.type == "preference"]
        self.ties = [record for record in records if record.type == "tie"]
        self.labels: list[Side | None] = ["tie" if record.type == "tie" else "completion" for record in records]
        self.lengths = {record.id: (len(words(record.completion or "")), len(words(record.rejected or "")))
                        for record in records}
        self.annotators = list(dict.fromkeys(name for record in records for name in _votes(record)))

    def verdicts(self, judge: str, records: Sequence[Record]) -> list[Side | None]:
        """Which answer a judge prefers, of each row."""
        return [verdict_of(own.first, own.second) for own in (self.said[judge][record.id] for record in records)]

    def results(self) -> dict[str, Any]:
        """What results.json holds; undefined numbers are None."""
        table = {
            "rows": len(self.records), "preferences": len(self.preferred), "ties": len(self.ties),
            "judges": {judge: self._line(judge) for judge in self.stage.judges},
            "agreement": [{"first": one, "second": other, **self._agreement(one, other)}
                          for one, other in self.stage.pairs()],
            "annotators": self._between_annotators(),
        }
        cleaned: dict[str, Any] = without_nan(table)
        return cleaned

    def _line(self, judge: str) -> dict[str, Any]:
        pairs = [self.said[judge][record.id] for record in self.preferred]
        first, second = [own.first for own in pairs], [own.second for own in pairs]
        right, verdicts = win_rate(first, second, **self.draws), self.verdicts(judge, self.preferred)
        margins = [own.first - own.second for own in pairs]
        reasons = Counter(own.unread for own in self.said[judge].values() if own.unread is not None)
        compared = [two for own in self.said[judge].values() if (two := own.compared) is not None]
        alone = self.stage.scalar(judge)
        return {
            "accuracy": {"value": right.rate, "low": right.low, "high": right.high},
            "right": right.wins, "tied": right.ties, "wrong": right.losses, "unread": dict(reasons),
            "read": 1 - sum(reasons.values()) / len(self.records),
            "calibration": calibration(margins) if alone else None,
            "length": by_length(verdicts, [self.lengths[record.id] for record in self.preferred])._asdict(),
            "place": by_place(compared) if self.stage.compares(judge) else None,
            "labels": self._labels(judge),
            "annotators": self._annotators(judge),
            "by_kind": self._by_kind(judge),
            "sections": self._sections(judge),
            "margins": histogram({"margins": margins}).get("margins"),
        }

    def _agreement(self, one: str, other: str) -> dict[str, float]:
        return agreement_of(self.verdicts(one, self.records), self.verdicts(other, self.records),
                            **self.draws)._asdict()

    def _labels(self, judge: str) -> dict[str, Any]:
        """Agreement with what the rows say, ties among it, and what the judge says of these."""
        said = self.verdicts(judge, self.ties)
        read = [one for one in said if one is not None]
        sizes = {name: finite_mean([abs(own.first - own.second) for own in (
            self.said[judge][record.id] for record in records)])
            for name, records in (("preferences", self.preferred), ("ties", self.ties))}
        return {**agreement_of(self.verdicts(judge, self.records), self.labels, **self.draws)._asdict(),
                "called_ties": read.count("tie") / len(read) if read else math.nan, "mean_margin": sizes}

    def _annotators(self, judge: str) -> dict[str, dict[str, float]]:
        verdicts = self.verdicts(judge, self.records)
        return {name: agreement_of(verdicts, self._votes_of(name), **self.draws)._asdict() for name in self.annotators}

    def _between_annotators(self) -> list[dict[str, Any]]:
        return [{"first": one, "second": other,
                 **agreement_of(self._votes_of(one), self._votes_of(other), **self.draws)._asdict()}
                for at, one in enumerate(self.annotators) for other in self.annotators[at + 1:]]

    def _votes_of(self, annotator: str) -> list[Side | None]:
        return [_votes(record).get(annotator) for record in self.records]

    def _by_kind(self, judge: str) -> dict[str, dict[str, Any]]:
        made = {}
        for kind in dict.fromkeys(kind for record in self.preferred if (kind := kind_of(record)) is not None):
            pairs = [self.said[judge][record.id] for record in self.preferred if kind_of(record) == kind]
            rate = win_rate([own.first for own in pairs], [own.second for own in pairs], **self.draws)
            made[kind] = {"value": rate.rate, "low": rate.low, "high": rate.high, "rows": len(pairs)}
        return made

    def _sections(self, judge: str) -> dict[str, dict[str, float]]:
        value = {"completion": 1.0, "tie": 0.5, "rejected": 0.0}
        rows = zip(self.preferred, self.verdicts(judge, self.preferred), strict=True)
        return section_shares([(str(record.meta["section"]), kind_of(record), value[said]) for record, said in rows
                               if said is not None and record.meta.get("section") is not None])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Lines of pairs.jsonl; numbers may be NaN."""
        for record, label in zip(self.records, self.labels, strict=True):
            yield {
                "id": record.id, "kind": kind_of(record), "section": record.meta.get("section"),
                "prompt": record.prompt, "completion": record.completion, "rejected": record.rejected, "label": label,
                "votes": _votes(record) or None, "judges": {judge: self._said_of(judge, record)
                                                            for judge in self.stage.judges},
            }

    def _said_of(self, judge: str, record: Record) -> dict[str, Any]:
        own = self.said[judge][record.id]
        beside = {name: value for name in ("unread", "said", "swapped", "judged")
                  if (value := getattr(own, name)) is not None}
        return {"completion": own.first, "rejected": own.second, "margin": own.first - own.second,
                "verdict": verdict_of(own.first, own.second), **beside}


def _votes(record: Record) -> dict[str, Side]:
    """Annotator -> the side that he prefers, where the row says so."""
    votes = record.meta.get("votes")
    if not isinstance(votes, dict):
        return {}
    return {str(name): side for name, side in votes.items() if side in ("completion", "rejected", "tie")}


def flat_metrics(results: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Metrics of the manifest by flat name, and the names of those left out because they are undefined."""
    named: dict[str, float | None] = {}
    for judge, line in results["judges"].items():
        named |= {f"{judge}.{name}": value for name, value in _metrics(line).items()}
    for one in results["agreement"]:
        named |= {f"{one['first']}_and_{one['second']}.{name}": one[name] for name in ("agreement", "kappa")}
    return ({name: value for name, value in named.items() if value is not None},
            [name for name, value in named.items() if value is None])


def _metrics(line: Mapping[str, Any]) -> dict[str, float | None]:
    accuracy, labels, length = line["accuracy"], line["labels"], line["length"]
    judged = line["right"] + line["tied"] + line["wrong"]
    made = {
        "accuracy": accuracy["value"], "accuracy_low": accuracy["low"],
        "ties": line["tied"] / judged if judged else None, "read": line["read"],
        "accuracy_shorter": length["shorter"], "accuracy_longer": length["longer"],
        "prefers_longer": length["prefers_longer"], "label_agreement": labels["agreement"],
        "label_kappa": labels["kappa"],
    }
    if line["calibration"] is not None:
        made |= {"ece": line["calibration"]["ece"], "loss": line["calibration"]["loss"]}
    if line["place"] is not None:
        made |= {name: line["place"][name] for name in ("consistent", "prefers_first", "prefers_second")}
    if line["annotators"]:
        made["annotator_agreement"] = finite_mean([own["agreement"] for own in line["annotators"].values()])
    if line["sections"]:
        made["section_mean"] = finite_mean([own["accuracy"] for own in line["sections"].values()])
    return made
