"""The exact commands that continue a run, as a user would type them. Runs nothing."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from alignment.artifacts import Store
from alignment.config import AnyStage, Run
from alignment.report.reading import Artifacts, read_text, unneeded_of


@dataclass(frozen=True)
class Command:
    purpose: str
    line: str


def commands(run: Run, artifacts: Artifacts, typed: str | None) -> list[Command]:
    """What to type next.

    Args:
        typed: how the run was started, `run FILE OPTIONS` or `submit FILE OPTIONS`; None: in a pod, where nobody knows.
    """
    verb, _, rest = (typed or "submit RUN.yaml --profile PROFILE").partition(" ")
    spared = unneeded_of(run, artifacts)
    left = [stage for stage in run.stages if artifacts.get(stage.name) is None and stage.name not in spared]
    one = left[0] if left else run.stages[-1]
    made = [
        Command("Make what is not finished; finished stages are left alone" if left else
                "Run it again: nothing to do, every stage is finished", f"kubealign {verb} {rest}"),
        Command("See which stages are finished and where they lie", f"kubealign status {rest}"),
        Command("What a stage printed", f"kubealign logs {rest} --stage {one.name}"),
        Command("Make one stage alone, the stages it reads being finished",
                f"kubealign {verb} {rest} --stage {one.name}"),
    ]
    epochs = {stage.name: value for stage in run.stages if (value := getattr(stage, "epochs", None)) is not None}
    if epochs:
        last = list(epochs)[-1]
        made.append(Command("Change a value: that stage and those that read it are made anew beside the old ones",
                            f"kubealign {verb} {rest} --set {last}.epochs={epochs[last] * 2:g}"))
    made += _elsewhere(run, rest, one) if verb == "run" else []
    made.append(Command("Render this page again", f"kubealign report {rest}"))
    return made + _use(run, artifacts)


def _elsewhere(run: Run, rest: str, one: AnyStage) -> list[Command]:
    """The same run from its resolved file, and on a Ray cluster."""
    store = Store(run.store)
    shared = " and the store on a disk that all its nodes share" if store.is_local else ""
    made = []
    if store.is_local:
        resolved = shlex.quote(f"{store.url}/runs/{run.name}/run.yaml")
        made.append(Command("Exactly this run, every default and override written out", f"kubealign run {resolved}"))
    made.append(Command(
        f"The whole run on a Ray cluster, its address in RAY_ADDRESS{shared}, here with two workers a stage",
        f"ray job submit --working-dir . -- kubealign run {rest} --set compute.workers=2"))
    if " --" not in rest:  # a stage's script knows no options
        made.append(Command("One stage as a Ray job",
                            f"ray job submit --working-dir . -- python ray_jobs/{one.script}.py {rest} {one.name}"))
    return made


def _use(run: Run, artifacts: Artifacts) -> list[Command]:
    """How to load, ask and give away the last policy, with transformers and peft alone."""
    made = [artifact for stage in run.stages if stage.makes == "policy" and (artifact := artifacts.get(stage.name))]
    if not made:
        return []
    folder = f"{made[-1].url}/model"
    base = json.loads(read_text(made[-1], "model/kubealign.json") or "{}").get("base")
    under = f"{made[-1].store.url_of(f'artifacts/{base}')}/model" if base else folder
    load = ["from transformers import AutoModelForCausalLM, AutoTokenizer",
            *(["from peft import PeftModel"] if base else []),
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
            f"model = AutoModelForCausalLM.from_pretrained({under!r})",
            *([f"model = PeftModel.from_pretrained(model, {folder!r})"] if base else [])]
    ask = ["chat = [{'role': 'user', 'content': 'Who are you?'}]",
           "asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, "
           "return_tensors='pt')",
           "said = model.generate(**asked, max_new_tokens=100)[0, asked['input_ids'].shape[1]:]",
           "print(tokenizer.decode(said, skip_special_tokens=True))"]
    keep = ["model.merge_and_unload().save_pretrained('merged')" if base else "model.save_pretrained('merged')",
            "tokenizer.save_pretrained('merged')"]
    here = "" if made[-1].store.is_local else ", once the folders are copied to this machine"
    return [Command(f"Load the last model in Python{here}", "\n".join(load)),
            Command("Chat with it: one question and its answer", "\n".join(ask)),
            Command("One folder with full weights, as servers of Hugging Face models read it", "\n".join(keep)),
            Command("Serve that folder where vLLM is installed, with OpenAI's interface on port 8000",
                    "vllm serve merged")]


def made_by(run: Run, artifacts: Artifacts) -> list[tuple[str, str, str]]:
    """(stage, what, URL) of every model, row set and table that a person may want to open."""
    places = []
    for stage in run.stages:
        artifact = artifacts.get(stage.name)
        if artifact is None:
            continue
        files = artifact.manifest.files
        if any(file.startswith("model/") for file in files):
            what = {"reward": "reward model", "embedder": "embedder"}.get(stage.makes, "model")
            places.append((stage.name, what, f"{artifact.url}/model"))
        elif any(file.startswith("rows/") for file in files):
            scored = any(ref.role != "embedder" for ref in stage.model_refs())
            places.append((stage.name, "scored rows" if scored else "rows", f"{artifact.url}/rows"))
        elif stage.makes == "table":
            places.append((stage.name, "results and answers", artifact.url))
    return places
