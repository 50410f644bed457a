"""The shipped recipes of large models are checked and planned where no hub can be reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.planner.test_auto import LLAMA

RUNS = Path(__file__).parents[2] / "configs/runs"
GUANACO, PAIRS = "guanaco.jsonl", "pairs.jsonl"


@pytest.fixture
def llama2(call: Call) -> list[str]:
    """The arguments of the Llama 2 recipe over rows of its two formats."""
    chats = [{"conversations": [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"It is {n}."}]}
             for n in range(60)]
    pairs = [{"qid": n, "question": f"How do I {n}?", "response_j": f"Like {n}.", "response_k": "No idea.",
              "date": "2020/01/01", "metadata": ["x"]} for n in range(200)]
    for file, rows in ((GUANACO, chats), (PAIRS, pairs)):
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(RUNS / "llama2-guanaco.yaml"), "--set", f"params.sft_rows={GUANACO}", "--set", f"params.pairs={PAIRS}"]


def test_llama2_is_checked_and_planned(call: Call, llama2: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checked = call("check", *llama2)
    assert checked.code == 0, checked.err
    assert "base     import · meta-llama/Llama-2-7b-chat-hf\n" in checked.out
    assert "stack    import · 1 file: pairs.jsonl  (194 train, 3 dev, 3 test" in checked.out
    unknown = call("plan", *llama2, "--gpus", "4090")
    assert unknown.code == 0, unknown.err
    assert "hf download REPO config.json" in " ".join(unknown.out.split())
    snapshot = Path("hub/models--meta-llama--Llama-2-7b-chat-hf/snapshots/main")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA["7B"] | {"max_position_embeddings": 4096}))
    monkeypatch.setenv("HF_HUB_CACHE", "hub")
    known = call("plan", *llama2, "--gpus", "4090")
    assert known.code == 0, known.err
    assert "memory not known" not in " ".join(known.out.split())
    assert "does not fit" not in known.out


def test_socratic_is_checked(call: Call) -> None:
    said = call("check", RUNS / "socratic.yaml", "--set", f"params.data={RUNS.parent / 'seeds'}")
    assert said.code == 0, said.err
    assert "(120 train, 15 dev, 45 test)" in said.out
    assert "119 of 120 answers are good by socratic_type" in said.out


def test_judges_are_checked_with_one_over_the_network_beside_them(call: Call) -> None:
    pairs = f"params.pairs={RUNS.parent / 'seeds/harbour.jsonl'}"
    for more, judges in (((), 3), (("--set", "judges.judges.gpt={judge: {model: there, mode: compare}}"), 4)):
        said = call("check", RUNS / "judge-check.yaml", "--set", pairs, *more)
        assert said.code == 0, said.err
        assert f"evaluate · {judges} judges on pairs: " in said.out
    wrong = call("check", RUNS / "judge-check.yaml", "--set", pairs, "--set", "aims=[judges.longer.ece < 0.1]")
    assert wrong.code != 0
    assert "judges.longer.ece" in wrong.err


def test_judged_pairs_are_checked_with_a_judge_here_and_one_over_the_network(call: Call) -> None:
    for more in ((), ("--set", "params.judge=there")):
        said = call("check", RUNS / "judged-pairs.yaml", "--set",
                    f"params.data={RUNS.parent / 'seeds/harbour.jsonl'}", *more)
        assert said.code == 0, said.err
        assert "generate · judged_pairs, 4 answers: base" in said.out


def test_qwen_is_checked_over_an_alpaca_file(call: Call) -> None:
    rows = [{"instruction": f"说一个数字,不是{n}", "input": "", "output": f"{n + 1}"} for n in range(60)]
    Path("zh.json").write_text(json.dumps(rows, ensure_ascii=False))
    said = call("check", RUNS / "qwen-sft.yaml", "--set", "params.data=zh.json")
    assert said.code == 0, said.err
    assert "54 train, 2 dev, 4 test" in said.out
