"""What servers leave beside an artifact: proofs of several replicas, in the order in which they were made."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from alignment.artifacts import Store, StoreUnreachable

KEY, OTHER = "sft-0123456789ab", "sft-ba9876543210"


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a store at whose address nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/store"


def test_proofs_come_back_oldest_first_and_each_whole(store: Store) -> None:
    assert store.proof_files(KEY) == []
    times = ["20261128T193000Z", "20251231T235959Z", "20261128T183000Z"]
    urls = {at: store.write_proof(KEY, at, f'{{"at": "{at}", "problem": "ä"}}\n') for at in times}
    store.write_proof(OTHER, "20200101T000000Z", "{}")
    store.write_served_file(KEY, "answers.jsonl", "{}\n")
    store.write_served_file(KEY, "proof-of-nothing.txt", "no proof")
    names = store.proof_files(KEY)
    assert [urls[at] for at in sorted(times)] == [store.url_of(f"served/{KEY}/{name}") for name in names]
    texts = [store.read_served_file(KEY, name) for name in names]
    assert texts == [f'{{"at": "{at}", "problem": "ä"}}\n' for at in sorted(times)]
    assert store.read_served_file(KEY, names[0], 8) == '{"at": "'
    assert store.read_served_file(KEY, "proof-that-went.json") is None
    assert len(store.proof_files(OTHER)) == 1


def test_replicas_that_prove_within_one_second_write_a_file_each(store: Store) -> None:
    for number in range(4):
        store.write_proof(KEY, "20261128T193000Z", str(number))
    names = store.proof_files(KEY)
    assert sorted(store.read_served_file(KEY, name) or "" for name in names) == ["0", "1", "2", "3"]


def test_each_server_finds_its_own_among_everybodys(store: Store) -> None:
    for by in ("", "qa.1", "qa.2", "my-qa.2", "qa.12"):
        store.write_proof(KEY, "20261128T193000Z", by, by)
    assert len(store.proof_files(KEY)) == 5
    assert [store.read_served_file(KEY, name) for name in store.proof_files(KEY, "qa.2")] == ["qa.2"]


def test_a_proof_that_is_not_whole_yet_is_not_listed(store: Store) -> None:
    """A folder's file is written beside and renamed."""
    store.write_served_file(KEY, "proof-20261128T193000Z-ab12.json.0123.part", "{")
    assert store.proof_files(KEY) == []


def test_a_store_that_does_not_answer_says_so(silent: str) -> None:
    for ask in (lambda: Store(silent).proof_files(KEY),
                lambda: Store(silent).read_served_file(KEY, "proof-x.json")):
        with pytest.raises(StoreUnreachable, match="does not answer") as error:
            ask()
        assert KEY in str(error.value)
