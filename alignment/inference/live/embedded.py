"""`LiveEngine` over transformers: one thread, one batch at a time, adapters apart beside their base.

For machines without vLLM. Questions that wait when a batch ends are the next batch, as far as they ask the same
adapter as the oldest: an answer never waits for a longer one that came later by more than one batch. Nothing joins a
batch that has begun.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import __version__ as transformers_version

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.errors import KubeAlignError, ModelError
from alignment.inference.adapters import with_adapter
from alignment.inference.engine import Engine
from alignment.inference.live.asked import Broken, Grown, Hear, Question
from alignment.inference.loading import load_beneath, load_tokenizer, resolve_device, resolve_dtype
from alignment.inference.requests import Token

TOKENS = 32_768
"""Room of one batch: answers times the longest prompt and answer, unless one alone needs more."""


@dataclass(frozen=True)
class _Waiting:
    number: int
    question: Question
    hear: Hear


class EmbeddedLive:
    """Args:
        base: an artifact whose full weights, or those beneath its adapter, answer.
        adapters: by key.
        loaded: adapters that are held at once, at most; the one used longest ago makes room.
        rows: answers that are made at once, at most.
    """

    def __init__(self, base: Artifact, adapters: Mapping[str, Artifact], compute: Compute, *, loaded: int,
                 rows: int) -> None:
        self.base, self.adapters, self.compute = base, adapters, compute
        self.loaded, self.rows = loaded, rows
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._gone: set[int] = set()
        self._open: set[int] = set()
        self._model: Any = None
        self._held: OrderedDict[str, None] = OrderedDict()
        self._engines: dict[str | None, Engine] = {}
        self._using = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {"engine": "transformers", "version": transformers_version,
                "dtype": "bfloat16" if self.compute.dtype == "bfloat16" else "float32"}

    @property
    def trouble(self) -> str | None:
        return None if self._thread.is_alive() and not self._over else "the engine has ended"

    def ask(self, question: Question, hear: Hear) -> int:
        number = next(self._numbers)
        with self._changed:
            if self._over:
                hear(Broken("the engine has ended", gone=True))
                return number
            self._open.add(number)
            self._waiting.append(_Waiting(number, question, hear))
            self._changed.notify()
        return number

    def cancel(self, number: int) -> None:
        with self._changed:
            if number in self._open:
                self._gone.add(number)

    def load(self, adapter: str | None) -> None:
        with self._using, self._with(adapter):
            pass

    def close(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()
        self._model = None
        self._engines.clear()

    # --- the thread that answers ---

    def _work(self) -> None:
        batch: list[_Waiting] = []
        try:
            while batch := self._next():
                try:
                    with self._using, self._with(batch[0].question.adapter) as engine:
                        self._answer(engine, batch)
                except Exception as error:  # of this batch: whoever asks next may have better luck, or the same words
                    words = error.problem if isinstance(error, KubeAlignError) else f"{type(error).__name__}: {error}"
                    self._break(batch, words, gone=False)
        finally:  # also where this thread is ended by what no batch can be blamed for
            with self._changed:
                self._over = True
            self._break([*batch, *self._waiting], "the engine has ended", gone=True)

    def _next(self) -> list[_Waiting]:
        """The next batch; empty at the end."""
        with self._changed:
            while not self._over:
                self._forget([one for one in self._waiting if one.number in self._gone])
                if self._waiting:
                    break
                self._changed.wait()
            if self._over:
                return []
            batch = self._together()
            taken = {one.number for one in batch}
            self._waiting = deque(one for one in self._waiting if one.number not in taken)
            return batch

    def _together(self) -> list[_Waiting]:
        """What waits and may be answered with the oldest of it."""
        first, batch = self._waiting[0].question, list[_Waiting]()
        prompt = answer = 0
        for one in self._waiting:
            if one.question.adapter == first.adapter:
                prompt = max(prompt, len(one.question.ids))
                answer = max(answer, one.question.draw.max_new_tokens)
                if batch and (len(batch) == self.rows or (prompt + answer) * (len(batch) + 1) > TOKENS):
                    break
                batch.append(one)
        return batch

    def _forget(self, some: list[_Waiting]) -> None:
        gone = {one.number for one in some}
        self._waiting = deque(one for one in self._waiting if one.number not in gone)
        self._open -= gone
        self._gone -= gone

    def _answer(self, engine: Engine, batch: list[_Waiting]) -> None:
        tops = [one.question.top for one in batch]
        top = None if all(one is None for one in tops) else max(one or 0 for one in tops)
        prompts = [list(one.question.ids) for one in batch]
        for step in engine.told(prompts, [one.question.draw for one in batch], top=top,
                                gone=lambda place: self._over or batch[place].number in self._gone):
            for place, token, ended in step:
                one = batch[place]
                if one.number in self._gone:
                    continue
                if ended:
                    self._end(one)
                one.hear(Grown((_as_asked(token, one.question.top),), ended, token.id in engine.stops))
        with self._changed:
            left = [one for one in batch if one.number in self._open]
        if self._over:
            self._break([one for one in left if one.number not in self._gone], "the engine has ended", gone=True)
        self._end(*left)

    def _end(self, *some: _Waiting) -> None:
        with self._changed:
            numbers = {one.number for one in some}
            self._open -= numbers
            self._gone -= numbers

    def _break(self, some: Any, words: str, *, gone: bool) -> None:
        for one in list(some):
            with self._changed:
                told = one.number in self._open and one.number not in self._gone
            self._end(one)
            if told:
                one.hear(Broken(words, gone))

    # --- weights ---

    @contextmanager
    def _with(self, adapter: str | None) -> Iterator[Engine]:
        """The engine of an adapter, or of the full weights, while nobody else uses them."""
        if adapter is None:
            model = self._weights()
            off = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
            with off:
                yield self._engine(None)
            return
        self._load(adapter)
        self._model.set_adapter(adapter, inference_mode=True)
        yield self._engine(adapter)

    def _weights(self) -> Any:
        if self._model is None:
            device = resolve_device(self.compute)
            self._model = load_beneath(self.base, dtype=resolve_dtype(self.compute, device), device=device)
        return self._model

    def _load(self, adapter: str) -> None:
        """Hold an adapter; one that cannot be loaded leaves nothing behind in the weights of others."""
        if adapter in self._held:
            self._held.move_to_end(adapter)
            return
        base = self._weights()
        try:
            self._model = with_adapter(base, self.adapters[adapter].path() / "model", adapter).eval()
        except ModelError:
            self._model = None
            self._held.clear()
            self._engines.clear()
            raise
        self._held[adapter] = None
        while len(self._held) > self.loaded:
            oldest, _ = self._held.popitem(last=False)
            self._model.delete_adapter(oldest)
            self._engines.pop(oldest, None)

    def _engine(self, adapter: str | None) -> Engine:
        made = self._engines.get(adapter)
        if made is None:
            model = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
            folder = (self.base if adapter is None else self.adapters[adapter]).path() / "model"
            made = self._engines[adapter] = Engine(model, load_tokenizer(folder, side="left"))
        return made


def _as_asked(token: Token, top: int | None) -> Token:
    """What of a token its own question asked for, where others of the batch asked for more."""
    return Token(token.id) if top is None else token._replace(top=token.top[:top])
