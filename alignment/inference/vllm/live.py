"""`LiveEngine` (live/asked.py) over vLLM's process: questions go down the pipe, a thread hears what comes back.

Before any answer each adapter is proved as for stages (proof.py): every weight has its place, and it is not the base.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.artifacts import Artifact
from alignment.inference.live.asked import Broken, Grown, Hear, Question
from alignment.inference.loading import load_tokenizer
from alignment.inference.requests import EngineStopped
from alignment.inference.vllm.client import Client
from alignment.inference.vllm.launch import Ask, Cancel, Failed, Launch, Piece, Pieces
from alignment.inference.vllm.proof import prove
from alignment.templates import stop_ids


class VllmLive:
    """Args:
        adapters: by key, as `launch` names them.
        base: an artifact of the full weights, or of an adapter over them: its tokenizer has the stop tokens of answers
            without one.

    Raises:
        EngineStopped: vLLM does not start.
    """

    def __init__(self, launch: Launch, base: Artifact, adapters: Mapping[str, Artifact]) -> None:
        self.adapters = adapters
        self._client = Client(launch)
        self._numbers = itertools.count(1_000_000_000)  # those below are the client's own, of proofs
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Hear, Collection[int]]] = {}
        self._trouble: str | None = None
        self._tokenizers: dict[str | None, PreTrainedTokenizerBase] = {
            None: load_tokenizer(base.path() / "model", side="left")}
        self._stops: dict[str | None, tuple[int, ...]] = {None: tuple(stop_ids(self._tokenizers[None]))}
        self._thread: threading.Thread | None = None

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {"engine": "vllm", "version": self._client.ready.version, "dtype": self._client.launch.dtype}

    @property
    def trouble(self) -> str | None:
        return self._trouble

    def load(self, adapter: str | None) -> None:
        if adapter is None:
            return
        folder = self.adapters[adapter].path() / "model"
        tokenizer = load_tokenizer(folder, side="left")
        self._stops[adapter] = tuple(stop_ids(tokenizer))
        prove(self._client, adapter, folder, tokenizer, f"model {adapter}")

    def ask(self, question: Question, hear: Hear) -> int:
        number = next(self._numbers)
        stops = self._stops[question.adapter]
        with self._lock:
            if self._trouble is not None:
                hear(Broken(self._trouble, gone=True))
                return number
            if self._thread is None:  # until the first question, proofs read the pipe themselves
                self._thread = threading.Thread(target=self._listen, name="hears vLLM", daemon=True)
                self._thread.start()
            self._open[number] = hear, stops
            try:
                self._client.send(Ask(number, question.ids, stops, question.draw, question.adapter, question.top,
                                      stream=True))
            except EngineStopped as error:
                self._end(error.problem)
        return number

    def cancel(self, number: int) -> None:
        with self._lock:
            if self._open.pop(number, None) is not None and self._trouble is None:
                try:
                    self._client.send(Cancel(number))
                except EngineStopped as error:
                    self._end(error.problem)

    def close(self) -> None:
        with self._lock:
            self._end("the engine has ended")
        self._client.close()

    def _listen(self) -> None:
        try:
            while True:
                said = self._client.receive()
                if isinstance(said, Pieces):
                    for piece in said.pieces:
                        self._tell(piece)
                elif isinstance(said, Failed) and said.number is not None:
                    with self._lock:
                        found = self._open.pop(said.number, None)
                    if found is not None:
                        found[0](Broken(said.words, gone=False))
                else:
                    raise EngineStopped(f"vLLM failed: {getattr(said, 'words', said)}")
        except Exception as error:  # it is gone, or was closed while this waited
            with self._lock:
                self._end(str(error))

    def _tell(self, piece: Piece) -> None:
        with self._lock:
            found = self._open.pop(piece.number, None) if piece.ended else self._open.get(piece.number)
        if found is not None:
            hear, stops = found
            stop = piece.ended and bool(piece.tokens) and piece.tokens[-1].id in stops
            hear(Grown(tuple(piece.tokens), piece.ended, stop))

    def _end(self, words: str) -> None:
        """Tell everybody. Holds the lock."""
        self._trouble = self._trouble or words
        some, self._open = self._open, {}
        for hear, _ in some.values():
            hear(Broken(words, gone=True))
