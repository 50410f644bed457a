"""vLLM processes of this process, by what they were started with: several models over one base share one.

Starting takes half a minute and takes memory until its end, so a process is ended when nobody uses it any more, or at
the end of `kept_open`, within which models that are asked one after another find it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from alignment.inference.vllm.client import Client
from alignment.inference.vllm.launch import Launch


@dataclass
class _Running:
    client: Client
    users: int = 0


_running: list[_Running] = []
_keeping = 0


def acquire(launch: Launch) -> Client:
    """A process that serves `launch`: one that runs, where it takes sequences of that length, else a new one. Each
    `acquire` wants its `release`. Raises EngineStopped where it does not start."""
    for one in _running:
        if replace(one.client.launch, max_model_len=0) == replace(launch, max_model_len=0) and (
                one.client.launch.max_model_len >= launch.max_model_len):
            one.users += 1
            return one.client
    _end_idle()  # its memory is needed
    made = _Running(Client(launch), 1)
    _running.append(made)
    return made.client


def release(client: Client) -> None:
    """One user less; without any, and outside of `kept_open`, the process ends."""
    for one in _running:
        if one.client is client:
            one.users -= 1
    if not _keeping:
        _end_idle()


def discard(client: Client) -> None:
    """It failed, and nobody shall find it again."""
    _running[:] = [one for one in _running if one.client is not client]
    client.close()


@contextmanager
def kept_open() -> Iterator[None]:
    """Processes that nobody uses any more run on until the end of the block, or until another needs the room."""
    global _keeping
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping:
            _end_idle()


def _end_idle() -> None:
    for one in [one for one in _running if not one.users]:
        _running.remove(one)
        one.client.close()
