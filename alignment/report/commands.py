"""The exact commands that continue a run, as a user would type them. Runs nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from alignment.artifacts import Store
from alignment.config import Run
from alignment.report.reading import Artifacts


@dataclass(frozen=True)
class Command:
    purpose: str
    line: str


def commands(run: Run, artifacts: Artifacts, file: str) -> list[Command]:
    """What to type next; `file` is the run file as the user typed it."""
    name, store = shlex.quote(file), Store(run.store)
    left = [stage for stage in run.stages if artifacts.get(stage.name) is None]
    epochs = {stage.name: value for stage in run.stages if (value := getattr(stage, "epochs", None)) is not None}
    shared = " and the store on a disk that all its nodes share" if store.is_local else ""
    one = left[0] if left else run.stages[-1]
    made = [
        Command("Make what is not finished; finished stages are left alone" if left else
                "Run it again: nothing to do, every stage is finished", f"kubealign run {name}"),
        Command("See which stages are finished and where they lie", f"kubealign status {name}"),
        Command("Make one stage alone, the stages it reads being finished", f"kubealign run {name} --stage {one.name}"),
    ]
    if epochs:
        last = list(epochs)[-1]
        key = f"{last}.epochs={epochs[last] * 2:g}"
        made.append(Command("Change a value: that stage and those that read it are made anew beside the old ones",
                            f"kubealign run {name} --set {key}"))
    if store.is_local:
        resolved = shlex.quote(f"{store.url}/runs/{run.name}/run.yaml")
        made.append(Command("Exactly this run, every default and override written out", f"kubealign run {resolved}"))
    made += [
        Command(f"The whole run on a Ray cluster, its address in RAY_ADDRESS{shared}, here with two workers a stage",
                f"ray job submit --working-dir . -- kubealign run {name} --set compute.workers=2"),
        Command("One stage as a Ray job",
                f"ray job submit --working-dir . -- python ray_jobs/{one.script}.py {name} {one.name}"),
        Command("Render this page again", f"kubealign report {name}"),
    ]
    return made


def made_by(run: Run, artifacts: Artifacts) -> list[tuple[str, str, str]]:
    """(stage, what, URL) of every model, row set and table that a person may want to open."""
    places = []
    for stage in run.stages:
        artifact = artifacts.get(stage.name)
        if artifact is None:
            continue
        files = artifact.manifest.files
        if any(file.startswith("model/") for file in files):
            what = "reward model" if stage.makes == "reward" else "model"
            places.append((stage.name, what, f"{artifact.url}/model"))
        elif any(file.startswith("rows/") for file in files):
            places.append((stage.name, "scored rows" if any(stage.model_refs()) else "rows", f"{artifact.url}/rows"))
        elif stage.makes == "table":
            places.append((stage.name, "results and answers", artifact.url))
    return places
