"""vLLM in a process of its own: `python -m alignment.inference.vllm.server FD`, started by client.py alone.

Takes a `Launch` and then questions from the pipe FD, gives each answer when it has ended, and ends when the pipe does,
so that it never outlives who asked. A process of its own, since ending it is what gives all memory back, since vLLM
changes the process that imports it, and since its crash is then an error with words. Knows no stages or artifacts.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm import __version__ as vllm_version
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from alignment.inference.requests import Token
from alignment.inference.vllm.launch import (
    Answered,
    Ask,
    Cancel,
    Failed,
    Launch,
    Piece,
    Pieces,
    Ready,
    Weigh,
    Weighed,
)
from alignment.inference.vllm.sampler import DRAW

Question = Ask | Weigh
SAMPLER = "alignment.inference.vllm.sampler:DrawSampler"
TURN_S = 1.0
"""Seconds that questions of another adapter wait while those of the one at work keep coming."""


class Server:
    """Answers the questions of one pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.questions: queue.Queue[Question | Cancel] = queue.Queue()
        launch: Launch = pipe.recv()
        threading.Thread(target=self._read, daemon=True).start()
        self.engine = LLMEngine.from_engine_args(EngineArgs(
            model=launch.model, dtype=launch.dtype, max_model_len=launch.max_model_len, skip_tokenizer_init=True,
            load_format="safetensors", generation_config="vllm", enable_prefix_caching=True, disable_log_stats=True,
            logits_processors=[SAMPLER], **launch.lora_options(), **launch.options))
        self.adapters = {adapter.name: LoRARequest(adapter.name, number, adapter.folder)
                         for number, adapter in enumerate(launch.adapters, 1)}
        unplaced = {name: self._add(request) for name, request in self.adapters.items()}
        pipe.send(Ready(vllm_version, unplaced))
        self.waiting: deque[tuple[float, Question]] = deque()
        self.asked: dict[str, Question] = {}

    def _read(self) -> None:
        """What comes through the pipe; at its end the process ends, whatever it is doing."""
        while True:
            try:
                self.questions.put(self.pipe.recv())
            except (EOFError, OSError):
                os._exit(0)

    def _add(self, request: LoRARequest) -> list[str]:
        """Load an adapter; returns the modules of its file that the model has no place for."""
        self.engine.add_lora(request)
        found = self.engine.collective_rpc(unplaced_modules, args=(request.lora_int_id,))
        return sorted(set.intersection(*map(set, found)))

    def serve(self) -> None:
        """Answer for ever. What is worked on at once has one adapter: on CPUs vLLM 0.29 computes what has none with the
        adapter of its last slot, where others of the batch have one. Each has its turn."""
        while True:
            while not self.questions.empty() or not (self.waiting or self.asked):
                self._hear(self.questions.get())
            self._begin_some()
            pieces = []
            for output in self.engine.step() if self.asked else ():
                if (asked := self.asked.get(output.request_id)) is None:
                    continue  # cancelled
                if isinstance(asked, Ask) and asked.stream:
                    pieces.append(self._piece(asked, output))
                elif output.finished:
                    self._end(output)
            if pieces:
                self.pipe.send(Pieces(pieces))

    def _hear(self, said: Question | Cancel) -> None:
        if not isinstance(said, Cancel):
            self.waiting.append((time.monotonic(), said))
            return
        self.waiting = deque(one for one in self.waiting if one[1].number != said.number)
        if self.asked.pop(str(said.number), None) is not None:
            self.engine.abort_request([str(said.number)])

    def _begin_some(self) -> None:
        """Begin with what waits and has the adapter at work; with none of it where another has waited for its turn."""
        if not self.waiting:
            return
        adapter = next(iter(self.asked.values()), self.waiting[0][1]).adapter
        if self.asked:
            others = next((since for since, one in self.waiting if one.adapter != adapter), None)
            if others is not None and time.monotonic() - others > TURN_S:
                return
        some, self.waiting = self.waiting, deque()
        for since, question in some:
            if question.adapter == adapter:
                self._begin(question)
            else:
                self.waiting.append((since, question))

    def _begin(self, asked: Question) -> None:
        params = SamplingParams(
            temperature=0.0, max_tokens=1, detokenize=False, ignore_eos=True, prompt_logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        ) if isinstance(asked, Weigh) else SamplingParams(
            temperature=0.0, max_tokens=asked.draw.max_new_tokens, detokenize=False, ignore_eos=True,
            stop_token_ids=list(asked.stops), logprobs=asked.top, extra_args={DRAW: asdict(asked.draw)},
            output_kind=RequestOutputKind.DELTA if asked.stream else RequestOutputKind.FINAL_ONLY,
        )
        adapter = None if asked.adapter is None else self.adapters[asked.adapter]
        try:
            name = self.engine.add_request(str(asked.number), {"prompt_token_ids": list(asked.ids)}, params,
                                           lora_request=adapter)
        except ValueError as error:  # this question's own trouble
            self.pipe.send(Failed(asked.number, f"{type(error).__name__}: {error}"))
        else:
            self.asked[str(asked.number)] = asked
            assert name

    def _end(self, output: RequestOutput) -> None:
        asked = self.asked.pop(output.request_id)
        if isinstance(asked, Weigh):
            self.pipe.send(Weighed(asked.number, _likelihoods(output.prompt_logprobs, asked)))
            return
        said = output.outputs[0]
        ids = list(said.token_ids)
        stop = ids.pop() if ids and ids[-1] in asked.stops else None
        if (stop is None) != (said.finish_reason == "length"):
            self.pipe.send(Failed(asked.number, f"vLLM ended an answer by {said.finish_reason} "
                                                f"({said.stop_reason}), with {len(said.token_ids)} tokens"))
            return
        told = None if asked.top is None else _tokens(said, asked.top)
        self.pipe.send(Answered(asked.number, ids, stop, told))

    def _piece(self, asked: Ask, output: RequestOutput) -> Piece:
        if output.finished:
            self.asked.pop(output.request_id)
        return Piece(asked.number, _tokens(output.outputs[0], asked.top), output.finished)


def _tokens(said: Any, top: int | None) -> list[Token]:
    """What one output of an answer brought; vLLM's own token comes first, whatever its rank, and then the likeliest."""
    if top is None:
        return [Token(token) for token in said.token_ids]
    made = []
    for token, found in zip(said.token_ids, said.logprobs, strict=True):
        ranked = sorted((one.rank, other, float(one.logprob)) for other, one in found.items())
        made.append(Token(token, float(found[token].logprob),
                          tuple((other, value) for rank, other, value in ranked if rank <= top)))
    return made


def _likelihoods(found: Sequence[Any] | None, asked: Weigh) -> list[float]:
    """Log-probability of each token from `start` on, in nats."""
    assert found is not None
    return [float(found[place][asked.ids[place]].logprob) for place in range(asked.start, len(asked.ids))]


def unplaced_modules(worker: Any, adapter: int) -> list[str]:
    """Runs in each of vLLM's workers: modules of a loaded adapter that no layer of the model takes. vLLM passes over
    them without a word."""
    manager = worker.model_runner.lora_manager._adapter_manager
    return [name for name in manager.get_adapter(adapter).loras if name not in manager.modules]


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    try:
        Server(pipe).serve()
    except Exception as error:
        pipe.send(Failed(None, f"{type(error).__name__}: {error}"))
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
