"""docs/models.md, line by line, in a process that cannot import this package: it computes what this package does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.artifacts import Artifact, Store
from tests import small

DOC = Path(__file__).parents[2] / "docs" / "models.md"
PRELUDE = "import sys\nsys.modules['alignment'] = None\n"
ASKED = "What colour is the boat?"
SAY = """
import json
import torch
with torch.no_grad():
    print(json.dumps(model.eval()(input_ids=torch.arange(3, 40).unsqueeze(0)).logits.float().flatten().tolist()))
"""


def blocks(title: str) -> list[str]:
    """The Python code of a section."""
    section = DOC.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A store with one model of each kind."""
    from alignment.pipeline.run import execute

    lora = {"kind": "lora", "r": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}
    qlora = {"kind": "qlora", "r": 4, "alpha": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(small.BASE["model"], "hidden_size", 64)  # a block of NF4
        run = small.run(tmp_path_factory.mktemp("made"), small.train("sft", strategy=lora),
                        small.train("full", strategy={"kind": "full"}), small.train("rm", "reward"),
                        small.train("four-bits", strategy=qlora), count=16)
    return dict(execute(run).artifacts)


@pytest.fixture(scope="module")
def moved(made: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store, somewhere else; what is at the old place is not its twin any more."""
    folder = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.copytree(made["sft"].store.url, folder)
    return folder


@pytest.fixture
def run_there(tmp_path: Path) -> Callable[[str, str], str]:
    """(code, folder that its `folder` line names) -> what it prints."""
    def run(code: str, folder: str) -> str:
        placed, times = re.subn(r'"runs/artifacts/[^"]+"', json.dumps(folder), code)
        assert times <= 1
        done = subprocess.run([sys.executable, "-c", PRELUDE + placed], capture_output=True, text=True, cwd=tmp_path,
                              env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"),
                                   "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def logits(artifact: Artifact) -> list[float]:
    import torch

    from alignment.inference.loading import load_policy

    model = load_policy(artifact, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        return list(model(input_ids=torch.arange(3, 40).unsqueeze(0)).logits.flatten().tolist())


def model_of(store: Path, artifact: Artifact) -> str:
    return str(store / "artifacts" / artifact.key / "model")


def test_full_weights(made: dict[str, Artifact], moved: Path, run_there: Callable[[str, str], str]) -> None:
    (code,) = blocks("A policy with full weights")
    said = run_there(code + "print(repr(answer))" + SAY, model_of(moved, made["full"])).splitlines()
    assert len(said) == 2
    assert json.loads(said[1]) == pytest.approx(logits(made["full"]), abs=1e-5)


def test_an_adapter_after_its_store_was_moved(
    made: dict[str, Artifact], moved: Path, run_there: Callable[[str, str], str]
) -> None:
    load, merge = blocks("An adapter")
    wanted = logits(made["sft"])
    assert json.loads(run_there(load + SAY, model_of(moved, made["sft"]))) == pytest.approx(wanted, abs=1e-4)
    again = "\nfrom transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained('merged')\n"
    said = run_there(load + merge + again + SAY, model_of(moved, made["sft"])).splitlines()[-1]  # DeepSpeed greets
    assert json.loads(said) == pytest.approx(wanted, abs=1e-4)


def test_an_adapter_over_four_bits(
    made: dict[str, Artifact], moved: Path, run_there: Callable[[str, str], str]
) -> None:
    (code,) = blocks("An adapter over four bits")
    (plain, _) = blocks("An adapter")
    wanted, folder = logits(made["four-bits"]), model_of(moved, made["four-bits"])
    assert json.loads(run_there(code + SAY, folder)) == pytest.approx(wanted, abs=1e-4)
    stored, packed = (json.loads(run_there(other + SAY, folder)) for other in (
        plain, code.replace(".dequantize()", "")))
    assert _apart(stored, wanted) > 1e-2, "over the base as it is stored it is another model"
    assert _apart(packed, wanted) < _apart(stored, wanted) / 3, "where kernels compute in bfloat16; else it is equal"


def _apart(one: list[float], other: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.parametrize("short", [
    "from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained(folder)",
    "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained(folder)",
    "from transformers import pipeline\nmodel = pipeline('text-generation', model=str(folder)).model",
])
def test_short_forms_find_the_base_by_its_name(
    made: dict[str, Artifact], run_there: Callable[[str, str], str], short: str
) -> None:
    form = short.splitlines()[1].partition(" = ")[2].removesuffix(".model").replace("'", '"')
    assert form in DOC.read_text(encoding="utf-8")
    said = run_there(f'folder = "runs/artifacts/x"\n{short}\n{SAY}', str(made["sft"].path() / "model"))
    assert json.loads(said) == pytest.approx(logits(made["sft"]), abs=1e-4)


def test_a_reward_model(made: dict[str, Artifact], moved: Path, run_there: Callable[[str, str], str]) -> None:
    import torch

    from alignment.inference.loading import load_reward, load_tokenizer
    from alignment.inference.scoring import RewardScorer

    (code,) = blocks("A reward model")
    said = float(run_there(f"{code}\nprint(score)", model_of(moved, made["rm"])))
    scorer = RewardScorer(load_reward(made["rm"], dtype=torch.float32, device="cpu"),
                          load_tokenizer(made["rm"].path() / "model", side="right"))
    assert said == pytest.approx(scorer.score([([{"role": "user", "content": ASKED}], "red")])[0], abs=1e-5)


def test_our_own_loading_does_not_read_that_name(made: dict[str, Artifact], moved: Path) -> None:
    (found,) = [Store(str(moved)).find(made["sft"].key)]
    assert found is not None
    base = made["base"].path()
    shutil.rmtree(base)
    try:
        assert logits(found)
    finally:
        shutil.copytree(moved / "artifacts" / made["base"].key, base)


@pytest.mark.parametrize(("rounded", "named"), [(False, ("maker/model", "c0ffee")), (True, None), (None, None)])
def test_a_base_of_the_hub_goes_by_its_name_there_unless_it_was_rounded(
    made: dict[str, Artifact], rounded: bool | None, named: tuple[str, str] | None
) -> None:
    from dataclasses import replace

    from alignment.inference.adapters import name_of_base

    base = made["base"]
    facts = {"source": {"source": "hub", "repo": "maker/model"}, "revision": "c0ffee", "rounded": rounded}
    of = replace(base, manifest=base.manifest.model_copy(update={"facts": facts}))
    assert name_of_base(of) == (named or (str(base.path() / "model"), None))
