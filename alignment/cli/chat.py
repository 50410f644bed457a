"""`chat`: talk with a model on the terminal, or with two side by side.

    kubealign chat sft-86ea8fe7c8a6
    kubealign chat qa.yaml:dpo --against qa.yaml:base
    kubealign chat http://127.0.0.1:8000/v1#dpo < questions.txt

On a terminal answers come word by word, and Ctrl-C ends an answer. Without one each line of stdin is a question, its
answer a paragraph of stdout, and the first trouble ends it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignment import interrupt
from alignment.cli import speech
from alignment.cli.conversation import SLOT, Conversation, Turn, check_template
from alignment.cli.options import ProfileName, VllmOptions, vllm_options
from alignment.cli.show import complain, say
from alignment.config import Compute, EndpointModel, Profile, Sampling, load_profile
from alignment.errors import ConfigError, KubeAlignError
from alignment.progress import console

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.inference.requests import Draw
    from alignment.inference.speaking import Speaker

HELP = """\
/system [TEXT]  set the system message, or none; what was said stays
/reset          forget the conversation; the system message stays
/retry          another answer to the last question
/save FILE      the conversation as rows of format `messages`, one for each model
/help           this
/exit           the end, as Ctrl-D is
Ctrl-C ends an answer. What stands between lines of \"\"\" is one message; one that begins with / has a blank before
it."""

ModelName = Annotated[str, typer.Argument(
    metavar="MODEL", help="An artifact's key, RUN.yaml:STAGE, RUN:STAGE, a folder, or https://host/v1#MODEL.")]


def chat(
    model: ModelName,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="A second model, asked the same.")] = None,
    prompt_template: Annotated[str, typer.Option(metavar="TEXT", help="What each message is put into, as {}.")] = SLOT,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws: the same chat has the same answers.")] = 0,
    store: Annotated[str | None, typer.Option(help="Where keys and runs are looked up. Default: runs, or the run "
                                                   "file's own.")] = None,
    profile: ProfileName = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable with the endpoint's key.")] = None,
    against_key_env: Annotated[str | None, typer.Option(help="The same of --against.")] = None,
    engine: Annotated[Literal["auto", "vllm", "transformers"], typer.Option(
        help="Of models with weights; auto: vLLM where it is installed and there is a GPU.")] = "auto",
    vllm: VllmOptions = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Talk with a model: streaming, with history; --against a second one side by side."""
    template = check_template(prompt_template)
    compute = _compute(device, dtype, engine, vllm_options(vllm))
    place = None if profile is None else load_profile(profile).here()
    found = [_found(text, store, env, where, place) for text, env, where in (
        (model, key_env, "MODEL"), (against, against_key_env, "--against")) if text is not None]
    from alignment.inference.speaking import open_speaker

    sides = [Side(open_speaker(one, compute, len(found) - 1), Conversation(template, system)) for one in found]
    talk = Talk(sides, Sampling(temperature=temperature, max_new_tokens=max_new_tokens), seed)
    try:
        for side in sides:
            side.speaker.load()
        talk.run()
    finally:
        for side in sides:
            side.speaker.close()


def _compute(device: str, dtype: str, engine: str, vllm: dict[str, Any] | None) -> Compute:
    for where, given, known in (("--device", device, ("auto", "cpu", "cuda")),
                                ("--dtype", dtype, ("auto", "float32", "bfloat16"))):
        if given not in known:
            raise ConfigError("unknown", where=where, found=given, expected="one of " + ", ".join(known))
    return Compute.model_validate({"device": device, "dtype": dtype, "engine": engine, "vllm": vllm})


def _found(
    text: str, store: str | None, key_env: str | None, where: str, place: Profile | None
) -> Artifact | EndpointModel:
    from alignment.cli.without_file import importing
    from alignment.pipeline import execute
    from alignment.pipeline.named import STORE, named

    found = named(text, store, profile=place, key_env=key_env, where=where)
    if not isinstance(found, Path):
        return found
    run, stage = importing(found, store or STORE)
    made = execute(run).artifacts[stage]
    assert made is not None
    return made


@dataclass
class Side:
    """A model and what was said with it."""

    speaker: Speaker
    conversation: Conversation


@dataclass
class Talk:
    """The loop: a line is a command or a message, until there is none."""

    sides: list[Side]
    sampling: Sampling
    seed: int
    typed: str | None = None
    attempt: int = 0
    saved: set[Path] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    """What is to be said when the answers are there."""
    pressed: int = 0
    """Ctrl-C since the last line or the last answer's end."""
    counted: threading.Event = field(default_factory=threading.Event)

    @property
    def here(self) -> bool:
        """Whether somebody sits at a terminal."""
        return sys.stdin.isatty()

    def run(self) -> None:
        if self.here:
            console.print(", ".join(side.speaker.name for side in self.sides) + "; /help says what can be typed",
                          markup=False)
            with suppress(ImportError):
                import readline  # noqa: F401 - input() has a history then
        with interrupt.spared(self._goes_on):
            lines = self._lines()
            while (line := self._next(lines)) is not None:
                try:
                    if not self._obeyed(line):
                        return
                except KeyboardInterrupt:
                    self.counted.wait(1)
                    console.print("")
                except KubeAlignError as error:
                    if not self.here:
                        raise
                    complain(error)
                self._forget_presses()

    def _goes_on(self) -> bool:
        """Asked at each Ctrl-C, by the thread that hears of it, maybe after this one has."""
        self.pressed += 1
        self.counted.set()
        return self.here and self.pressed < 2

    def _forget_presses(self) -> None:
        self.pressed = 0
        self.counted.clear()

    def _next(self, lines: Iterator[str]) -> str | None:
        while True:
            try:
                line = next(lines, None)
                self._forget_presses()
                return line
            except KeyboardInterrupt:
                console.print("\n(Ctrl-D or /exit ends, and so does Ctrl-C once more)", markup=False)
                lines = self._lines()

    def _lines(self) -> Iterator[str]:
        """Messages and commands; what stands between lines of three quotes is one."""
        while True:
            line = self._line(">>> ")
            if line is None:
                return
            if line.strip() == '"""':
                block: list[str] = []
                while (more := self._line("... ")) is not None and more.strip() != '"""':
                    block.append(more)
                line = "\n".join(block)
            if line.strip():
                yield line

    def _line(self, prompt: str) -> str | None:
        if not self.here:
            read = sys.stdin.readline()
            return read.rstrip("\r\n") if read else None
        try:
            return input(prompt)
        except EOFError:
            print()
            return None

    def _obeyed(self, line: str) -> bool:
        """Do what a line says; False where it says that this is the end."""
        command, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self.typed, self.attempt = line.removeprefix(" ") if line.startswith(" /") else line, 0
            self._ask()
        elif command in ("/exit", "/quit"):
            return False
        elif command in _COMMANDS:
            _COMMANDS[command](self, rest.strip())
        else:
            raise ConfigError("no such command", found=command, expected=", ".join([*_COMMANDS, "/exit"]))
        return True

    def _ask(self) -> None:
        """All sides, what was typed last."""
        speaks = [lambda on_text, side=side: self._answer(side, on_text) for side in self.sides]
        try:
            if len(speaks) == 1:
                speech.one(speaks[0])
            else:
                speech.several([side.speaker.name for side in self.sides], speaks)
        finally:  # not before: columns are being drawn
            for note in self.notes:
                console.print(f"! {note}", markup=False)
            self.notes.clear()

    def _answer(self, side: Side, on_text: speech.OnText) -> None:
        """One side's answer, which is kept as far as it came."""
        assert self.typed is not None
        asked, speaker = side.conversation.asked(self.typed), side.speaker
        fitted = side.conversation.fitted(asked, speaker.prompt_tokens, speaker.context_length,
                                          self.sampling.max_new_tokens)
        if fitted.left_out:
            self.notes.append(f"{speaker.name}: the first {fitted.left_out} of {len(side.conversation.turns)} turns "
                              f"were left out, since it takes {speaker.context_length} tokens")
        if fitted.longest < self.sampling.max_new_tokens:
            self.notes.append(f"{speaker.name}: there was room for {fitted.longest} tokens of answer")
        said: list[str] = []

        def heard(piece: str) -> None:
            said.append(piece)
            on_text(piece)

        try:
            made = speaker.say(fitted.messages, self._draw(side, fitted.longest), heard)
        except KeyboardInterrupt:
            if text := "".join(said):
                side.conversation.turns.append(Turn(asked, text, False))
            raise
        side.conversation.turns.append(Turn(asked, made.text, made.finished))
        if not made.finished:
            self.notes.append(f"{speaker.name}: the answer was cut at {fitted.longest} tokens (--max-new-tokens)")

    def _draw(self, side: Side, longest: int) -> Draw:
        """Another for each question and each attempt; the same in every chat with this seed."""
        from alignment.inference.draws import draws

        sampling = self.sampling.model_copy(update={"max_new_tokens": longest})
        row = f"{len(side.conversation.turns)}/{self.attempt}"
        return draws(row, self.seed, 1, sampling, model=side.speaker.name)[0]

    # --- commands ---

    def _system(self, text: str) -> None:
        for side in self.sides:
            side.conversation.system = text or None
        say(f"system message: {text}" if text else "no system message")

    def _reset(self, _: str) -> None:
        for side in self.sides:
            side.conversation.turns.clear()
        self.typed = None
        say("forgotten")

    def _retry(self, _: str) -> None:
        if self.typed is None:
            raise ConfigError("there is no question yet", where="/retry")
        if self.sampling.greedy:
            console.print("! at temperature 0 the answer is the same", markup=False)
        for side in self.sides:
            turns = side.conversation.turns
            if turns and turns[-1].asked == side.conversation.asked(self.typed):
                turns.pop()
        self.attempt += 1
        self._ask()

    def _save(self, name: str) -> None:
        if not name:
            raise ConfigError("the file has no name", where="/save", expected="/save FILE")
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self.saved:
            raise ConfigError("the file exists already, and is not of this chat", where=name, expected="another name")
        rows = [side.conversation.to_json(side.speaker.name, template=side.conversation.template, seed=self.seed,
                                          temperature=self.sampling.temperature) for side in self.sides]
        try:
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", where=name) from error
        self.saved.add(path.resolve())
        say(f"saved to {name}: {len(self.sides[0].conversation.turns)} turns")

    def _help(self, _: str) -> None:
        say(HELP)


_COMMANDS = {"/system": Talk._system, "/reset": Talk._reset, "/retry": Talk._retry, "/save": Talk._save,
             "/help": Talk._help}
