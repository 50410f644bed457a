"""What the operator finds of replicas' proofs in the store: the newest of its own revision, whatever else lies
there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.cluster.operator import apart as module
from alignment.cluster.operator.apart import Apart, Lane, Overdue
from alignment.cluster.operator.reads import readable
from alignment.cluster.operator.served import Proof
from alignment.cluster.operator.store import LARGEST_PROOF, LOOKED_AT, proofs
from alignment.errors import ArtifactError

SFT, DPO = "sft-0123456789ab", "dpo-0123456789ab"
MODELS = {"sft": SFT, "best": DPO}


class Proofs:
    """A store with proofs, each a second after the one before."""

    def __init__(self, folder: Path) -> None:
        self.store, self.count = Store(str(folder)), 0

    def text(self, key: str, text: str, by: str = "r.2") -> None:
        self.count += 1
        self.store.write_proof(key, f"20261128T19{self.count // 60:02}{self.count % 60:02}Z", text, by)

    def write(self, key: str = SFT, **told: Any) -> None:
        said = {"model": "sft", "service": "r", "revision": "2", "cluster": "c2", "proved": True, "rows": 8,
                "most_off": 0.5, "problem": None} | told
        self.text(key, json.dumps(said), f"{said['service']}.{said['revision']}" if said["service"] else "")

    def found(self, models: dict[str, str] = MODELS, revision: int = 2) -> dict[str, Proof]:
        return proofs(readable([self.store.url]), self.store.url, "r", revision, models)


@pytest.fixture
def kept(tmp_path: Path) -> Proofs:
    return Proofs(tmp_path)


def test_of_several_revisions_and_services_the_newest_of_its_own_is_found(kept: Proofs) -> None:
    assert kept.found() == {}
    kept.write(rows=1)
    kept.write(rows=2, cluster="c3")
    kept.write(DPO, model="best", proved=False, problem="row r1: token 0 differs", most_off=3)
    kept.write(rows=3, revision="3")
    kept.write(rows=4, service="other")
    kept.write(rows=5, model="dpo")
    kept.write(rows=6, service=None, revision=None, cluster=None)
    assert kept.found() == {"sft": Proof(True, "c3", 2, 0.5),
                            "best": Proof(False, "c2", 8, 3.0, "row r1: token 0 differs")}
    assert kept.found(revision=3) == {"sft": Proof(True, "c2", 3, 0.5)}
    assert kept.found(revision=1) == {}
    assert kept.found({"sft": DPO}) == {}, "of another artifact under this name nothing is known"


@pytest.mark.parametrize("broken", [
    "", "[", "{}", "[]", "null", '"sft"', "\x00\xff", '{"service": "r", "revision": "2", "model": "s', "[" * 100_000,
    '{"service": "r", "revision": "2", "model": ' + "9" * 5000 + "}",
])
def test_a_file_that_is_no_proof_is_passed_over(kept: Proofs, broken: str) -> None:
    kept.write(rows=1)
    kept.text(SFT, broken)
    assert kept.found() == {"sft": Proof(True, "c2", 1, 0.5)}


@pytest.mark.parametrize(("told", "expected"), [
    ({"proved": "yes"}, Proof(False, "c2", 8, 0.5, "it is not proved")),
    ({"proved": False}, Proof(False, "c2", 8, 0.5, "it is not proved")),
    ({"rows": "8", "most_off": "0.5", "cluster": None}, Proof(True, "", None, None)),
    ({"rows": -1, "most_off": float("nan")}, Proof(True, "c2", None, None)),
    ({"rows": 10**400, "most_off": 10**400}, Proof(True, "c2", None, None)),
    ({"most_off": float("inf")}, Proof(True, "c2", 8, None)),
])
def test_what_a_proof_says_is_taken_as_far_as_a_status_can_hold_it(
    kept: Proofs, told: dict[str, Any], expected: Proof
) -> None:
    kept.write(**told)
    assert kept.found() == {"sft": expected}


def test_no_more_of_them_are_opened_than_the_newest_and_no_more_of_one_than_its_beginning(kept: Proofs) -> None:
    kept.write()
    for number in range(2 * LOOKED_AT):
        kept.write(service="other" if number % 2 else "a-r")
        kept.write(revision="12")
    assert "sft" in kept.found(), "others, however many, do not hide it"
    for _ in range(LOOKED_AT - 1):
        kept.write(model="dpo")
    assert "sft" in kept.found()
    kept.write(model="dpo")
    assert kept.found() == {}
    kept.write(problem="x" * LARGEST_PROOF)
    assert kept.found() == {}, "cut short, it is no proof"


def test_a_store_that_may_not_be_read_is_refused_and_a_file_that_leads_out_of_it_passed_over(
    kept: Proofs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    with pytest.raises(ArtifactError, match="is not where this operator may read"):
        proofs(readable([str(outside)]), kept.store.url, "r", 2, MODELS)
    kept.write(rows=1)
    Proofs(outside).write(rows=2)
    [theirs] = (outside / "served" / SFT).iterdir()
    (Path(kept.store.root) / "served" / SFT / "proof-29991231T000000Z-0000.r.2.json").symlink_to(theirs)
    assert kept.found()["sft"].rows == 1


# --- in a process of its own ---------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a store that takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/store"


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    import multiprocessing

    yield
    for child in multiprocessing.active_children():
        child.kill()


def test_proofs_are_found_in_a_process_apart(kept: Proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("slow", 1, 30.0, last=True)
    monkeypatch.setattr(module, "LANES", (lane,))
    kept.write()
    kept.text(SFT, "[" * 100_000)
    apart = Apart(readable([kept.store.url]))
    with apart.within(lane):
        assert apart.proofs(kept.store.url, "r", 2, MODELS) == {"sft": Proof(True, "c2", 8, 0.5)}
    with apart.within(lane), pytest.raises(ArtifactError, match="is not where this operator may read"):
        apart.proofs("/elsewhere", "r", 2, MODELS)


def test_a_store_that_never_answers_is_given_up(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, last = Lane("new", 1, 0.5), Lane("slow", 1, 4.0, last=True)
    monkeypatch.setattr(module, "LANES", (quick, last))
    apart = Apart(readable([silent]))
    with apart.within(quick), pytest.raises(Overdue):
        apart.proofs(silent, "r", 2, MODELS)
    with apart.within(last), pytest.raises(ArtifactError, match="which does not answer") as error:
        apart.proofs(silent, "r", 2, MODELS)
    assert silent in str(error.value)
