"""A model or rows of another run, by their artifact: the same files, an honest key, and what was learned is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Manifest, Store
from alignment.config import Evaluate, Run, parse_run
from alignment.context import StageContext
from alignment.data.lineage import rows_learned
from alignment.errors import ArtifactError, ConfigErrors, DataError, KubeAlignError
from alignment.evaluation.held_out import check_held_out, seen_rows
from alignment.pipeline.keys import keys
from alignment.pipeline.run import execute
from alignment.records import Record, each_record, write_records
from tests import small
from tests.evaluation.built import Built, build_run
from tests.evaluation.test_held_out import rows, stages

RUN = "theirs"


def publish(store: Store, key: str, files: dict[str, str], stage: str = "x", **manifest: Any) -> Artifact:
    """A finished artifact of these files."""
    with store.lease(key) as lease:
        folder = store.workdir(key) / "out"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        made = Manifest(**{"key": key, "digest": key[-12:] + "0" * 52, "stage": stage, "kind": "train", "config": {},
                           "inputs": {}, "files": {}, "started": "", "finished": "", "seconds": 0.0, **manifest})
        return store.publish(made, folder, lease)


def info(base: str | None = None, role: str = "policy") -> str:
    return json.dumps({"role": role, "form": "full" if base is None else "adapter", "base": base})


@pytest.fixture
def theirs(tmp_path: Path) -> Built:
    """Another run, finished: base, seed, sft, rm, draws, dpo; its evaluation is not."""
    built = build_run(tmp_path / "their", stages())

    def model(base: str | None, role: str = "policy") -> Any:
        def fill(folder: Path) -> None:
            (folder / "model").mkdir()
            (folder / "model" / "kubealign.json").write_text(info(base, role))
            (folder / "model" / "weights.safetensors").write_text(f"of {base}")
        return fill

    built.publish("base", model(None))
    built.publish_rows("seed", **{name: rows(name) for name in ("train", "dev", "rm", "prompts", "other", "test")})
    built.publish_rows("extra", train=rows("extra"))
    base = built.artifacts["base"].key
    built.publish("sft", model(base))
    built.publish("rm", model(base, "reward"))
    built.publish_rows("draws", pairs=rows("pairs"), best=rows("best"), samples=rows("samples"))
    built.publish("dpo", model(base))
    names = {name: one.key for name, one in built.artifacts.items()}
    built.store.write_run_file(RUN, "stages.json", json.dumps(names))
    return built


def ours(store: str, *listed: dict[str, Any]) -> Run:
    return parse_run(yaml.safe_dump({"name": "ours", "store": store, "stages": list(listed)}, sort_keys=False))


def model(artifact: str, name: str = "it", **more: Any) -> dict[str, Any]:
    role = {"role": more.pop("role")} if "role" in more else {}
    return {"name": name, "kind": "import", **role, "model": {"source": "artifact", "artifact": artifact, **more}}


def rows_of(artifact: str, *splits: str, **more: Any) -> dict[str, Any]:
    return {"name": "old", "kind": "import", "rows": {"artifact": artifact, "splits": list(splits), **more}}


def brought(run: Run) -> dict[str, Artifact]:
    return {name: found for name, found in execute(run).artifacts.items() if found is not None}


# --- names and keys ------------------------------------------------------------------------------------------


def test_key_run_and_stage_and_path_are_one_artifact_and_another_is_another(theirs: Built) -> None:
    key, store = theirs.artifacts["dpo"].key, theirs.store.url
    place = f"{store}/artifacts/{key}"
    named = [model(key), model(f"{RUN}:dpo"), model(place), model(f"{place}/model"), model(key, store=store)]
    assert len({keys(ours(store, one))["it"].digest for one in named}) == 1
    assert keys(ours(store, model(f"{RUN}:sft")))["it"].digest != keys(ours(store, model(key)))["it"].digest
    assert keys(ours("elsewhere", model(key)))["it"].digest == keys(ours(store, model(key)))["it"].digest


def test_a_run_made_anew_is_another_digest_under_the_same_name(theirs: Built) -> None:
    run = ours(theirs.store.url, model(f"{RUN}:dpo"))
    before = keys(run)["it"]
    theirs.store.write_run_file(RUN, "stages.json", json.dumps({"dpo": theirs.artifacts["sft"].key}))
    assert keys(run)["it"].digest != before.digest


@pytest.mark.parametrize("text", ["dpo", "dpo-12345", "a/b", "RUN:dpo", "runs/dpo-0123456789ab", "x:y:z", ""])
def test_what_names_no_artifact_is_refused_when_the_file_is_read(text: str) -> None:
    with pytest.raises(ConfigErrors, match="names no artifact"):
        ours("runs", model(text))


def test_a_path_says_its_store_and_a_chat_template_stays_the_models(theirs: Built) -> None:
    key = theirs.artifacts["dpo"].key
    with pytest.raises(ConfigErrors, match="the path says in which store"):
        ours("runs", model(f"runs/artifacts/{key}", store="other"))
    with pytest.raises(ConfigErrors, match="template"):
        ours("runs", {**model(key), "template": "chatml"})
    with pytest.raises(ConfigErrors, match="names a row set twice"):
        ours("runs", rows_of(key, "train", "train"))


def test_a_run_read_back_from_its_own_record_is_the_same(theirs: Built) -> None:
    run = ours(theirs.store.url, model(theirs.artifacts["dpo"].key), rows_of(f"{RUN}:seed", "test"))
    assert Run.model_validate_json(run.model_dump_json()) == run


# --- what is brought -----------------------------------------------------------------------------------------


def test_in_one_store_a_model_is_linked_and_takes_no_room(theirs: Built) -> None:
    dpo = theirs.artifacts["dpo"]
    made = brought(ours(theirs.store.url, model(dpo.key)))["it"]
    for name in ("kubealign.json", "weights.safetensors"):
        assert (made.path() / "model" / name).samefile(dpo.path() / "model" / name)
    assert made.manifest.facts["artifact"] == {
        "key": dpo.key, "digest": dpo.manifest.digest, "store": theirs.store.url, "stage": "dpo", "kind": "train"}


def test_from_another_store_an_adapter_brings_its_base_under_its_own_key(theirs: Built, tmp_path: Path) -> None:
    base = theirs.artifacts["base"]
    made = brought(ours(str(tmp_path / "our"), model(theirs.artifacts["dpo"].key, store=theirs.store.url)))["it"]
    found = made.store.find(base.key)
    assert found is not None
    assert found.manifest == base.manifest
    found.verify(deep=True)
    shutil.rmtree(theirs.store.root)
    made.verify(deep=True)
    assert {path.name for path in (tmp_path / "our" / "artifacts").iterdir()} == {made.key, base.key}


def test_rows_keep_ids_and_texts_and_only_the_named_row_sets_come(theirs: Built, tmp_path: Path) -> None:
    run = ours(str(tmp_path / "our"), rows_of(f"{RUN}:seed", "test", "dev", store=theirs.store.url))
    made = brought(run)["old"]
    assert [one.id for one in each_record(made.path() / "rows" / "test.jsonl")] == ["test-0", "test-1"]
    assert {name for name in made.manifest.files if name.startswith("rows/")} == {"rows/test.jsonl", "rows/dev.jsonl"}


def test_an_object_store_and_a_folder_give_and_take(theirs: Built, tmp_path: Path) -> None:
    remote, dpo = f"memory://{tmp_path.name}", theirs.artifacts["dpo"]
    up = brought(ours(remote, model(dpo.key, store=theirs.store.url)))["it"]
    assert Store(remote).find(theirs.artifacts["base"].key) is not None
    down = brought(ours(str(tmp_path / "our"), model(f"{remote}/artifacts/{up.key}")))["it"]
    assert (down.path() / "model" / "weights.safetensors").read_text() == (
        dpo.path() / "model" / "weights.safetensors").read_text()
    assert set(rows_learned(down)) == set(rows_learned(dpo))
    down.verify(deep=True)


# --- what was learned ----------------------------------------------------------------------------------------


def evaluation(tmp_path: Path, theirs: Built, models: list[str], split: str) -> StageContext:
    """Context of an evaluation of brought models on rows that are brought too."""
    store = theirs.store.url
    listed = [model(f"{RUN}:{name}", name, store=store, **({"role": "reward"} if name == "rm" else {}))
              for name in models]
    run = ours(str(tmp_path / "our"), *listed, rows_of(f"{RUN}:seed", split, store=store))
    made = brought(run)
    shutil.rmtree(theirs.store.root)  # nothing of it is asked any more
    stage = {"name": "eval", "kind": "evaluate", "models": [name for name in models if name != "rm"],
             "rows": f"old/{split}", **({"score": {"model": "rm"}} if "rm" in models else {})}
    whole = ours(run.store, *listed, rows_of(f"{RUN}:seed", split, store=store), stage)
    return StageContext(whole, whole.stage("eval"), Store(run.store), "eval-0", "0" * 64,
                        {name: made[name] for name in whole.stage("eval").inputs()}, tmp_path,
                        {name: one.key for name, one in made.items()})


def seen(context: StageContext) -> set[str]:
    stage = context.stage_as(Evaluate)
    return {path.stem for path in seen_rows(context, stage).values()}


@pytest.mark.parametrize(("models", "known"), [
    (["base"], set()), (["sft"], {"train", "dev"}), (["dpo"], {"train", "dev", "rm", "prompts", "pairs"}),
    (["base", "rm"], {"train", "dev", "rm"}),
])
def test_what_a_brought_model_has_learned_is_known_without_its_store(
    models: list[str], known: set[str], theirs: Built, tmp_path: Path
) -> None:
    assert seen(evaluation(tmp_path, theirs, models, "test")) == known


def test_rows_that_a_brought_model_has_seen_are_refused(theirs: Built, tmp_path: Path) -> None:
    context = evaluation(tmp_path, theirs, ["dpo"], "prompts")
    test = context.rows("old/prompts")
    with pytest.raises(DataError, match="2 of 2 test rows were seen before") as error:
        check_held_out(context, context.stage_as(Evaluate), test)
    assert theirs.artifacts["seed"].key in str(error.value.found)


def test_rows_that_it_has_not_seen_are_not(theirs: Built, tmp_path: Path) -> None:
    context = evaluation(tmp_path, theirs, ["dpo"], "test")
    assert check_held_out(context, context.stage_as(Evaluate), context.rows("old/test")).dropped == []


def test_a_text_under_another_id_is_found_too(theirs: Built, tmp_path: Path) -> None:
    context = evaluation(tmp_path, theirs, ["sft"], "test")
    one = rows("train")[0]
    copied = [Record(id="new", type=one.type, prompt=one.prompt, completion=one.completion)]
    with pytest.raises(DataError, match="1 of 1 test rows were seen"):
        check_held_out(context, context.stage_as(Evaluate), copied)


def test_what_is_learned_on_top_of_a_brought_model_adds_to_it(theirs: Built, tmp_path: Path) -> None:
    store, ours_at = theirs.store.url, tmp_path / "our"
    first = brought(ours(str(ours_at), model(f"{RUN}:sft", store=store)))["it"]
    top = publish(Store(str(ours_at)), "sft-0123456789ab", {"model/kubealign.json": info()}, inputs={"it": first.key})
    again = brought(ours(str(tmp_path / "third"), model(top.key, store=str(ours_at))))["it"]
    assert {path.stem for path in rows_learned(again).values()} == {"train", "dev"}


def test_a_model_card_goes_on_to_what_another_run_made_it_from(theirs: Built, tmp_path: Path) -> None:
    from alignment.export.history import history_of

    made = brought(ours(str(tmp_path / "our"), model(f"{RUN}:dpo", store=theirs.store.url)))["it"]
    told = history_of(made, {made.key: "it"})
    assert [step.name for step in told.steps][-2:] == ["dpo", "it"]
    assert {"sft", "seed", "draws", "base"} <= {step.name for step in told.steps}
    assert told.base is not None
    shutil.rmtree(theirs.store.root)
    assert [step.name for step in history_of(made, {made.key: "it"}).steps] == ["it"]


def test_a_stage_of_a_version_that_is_not_known_counts_as_having_read_all(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    write_records(tmp_path / "a.jsonl", rows("a"))
    text = (tmp_path / "a.jsonl").read_text()
    data = publish(store, "import-data-0123456789ab", {"rows/train.jsonl": text, "rows/test.jsonl": text})
    later = publish(store, "later-0123456789ab", {"model/kubealign.json": info()}, inputs={"data": data.key},
                    config={"kind": "of-a-later-version"})
    assert set(rows_learned(later)) == {f"{data.key}/train", f"{data.key}/test"}


def test_an_embedder_of_another_run_and_a_language_model_as_one_give_the_vectors_that_they_gave_there(
    tmp_path: Path
) -> None:
    from alignment.config import Compute
    from alignment.inference.embedding import EncoderEmbedder

    there = brought(ours(str(tmp_path / "their"), {"name": "vectors", "kind": "import", "role": "embedder",
                                                   "model": {"source": "tiny"}}, small.BASE))
    for name in ("vectors", "base"):
        stage = model(there[name].key, store=there[name].store.url, role="embedder")
        here = brought(ours(str(tmp_path / "our"), stage))["it"]
        vectors = [EncoderEmbedder(one, Compute(device="cpu", dtype="float32")).embed(
            ["red boats", "a gate"], pooling="mean", max_tokens=64, normalise=True)[0] for one in (there[name], here)]
        assert here.key.startswith("import-artifact-embedder-")
        assert (vectors[0] == vectors[1]).all()
    rows = {"name": "data", "kind": "import", "data": [{"path": "a.jsonl", "format": "messages"}],
            "split": {"by": "ratio", "ratios": {"train": 1.0}}}
    far = {"name": "far", "kind": "select", "by": "coverage", "rows": ["data/train"], "embedder": "it", "take": 2,
           "pooling": "mean"}
    assert ours("runs", stage, rows, far).stage("it").makes == "embedder"
    with pytest.raises(ConfigErrors, match="needs a stage that makes a language model"):
        ours("runs", stage, rows, small.train("sft", model="it", rows=["data/train"]))


# --- what cannot be ------------------------------------------------------------------------------------------


def refused(store: str, stage: dict[str, Any]) -> KubeAlignError:
    with pytest.raises(ArtifactError) as error:
        execute(ours(store, stage))
    return error.value


def test_what_is_not_there_is_said_with_what_is(theirs: Built) -> None:
    store = theirs.store.url
    error = refused(store, model("dpo-0123456789ab"))
    assert "has no such artifact" in error.problem
    assert theirs.artifacts["dpo"].key in str(error.hint)
    assert "no list of what this run made" in refused(store, model("nobody:dpo")).problem
    error = refused(store, model(f"{RUN}:sfft"))
    assert (error.problem, "dpo" in str(error.expected)) == ("the run has no such stage", True)
    theirs.store.workdir("sft-0123456789ab")
    assert "not finished" in refused(store, model("sft-0123456789ab")).problem


@pytest.mark.parametrize(("stage", "found", "expected"), [
    (model(f"{RUN}:rm"), "a reward model", "a language model"),
    (model(f"{RUN}:dpo", role="reward"), "a language model", "a reward model"),
    (model(f"{RUN}:seed"), "no model, but a import-data", "a language model"),
    (model(f"{RUN}:rm", role="embedder"), "a reward model", "embedder (an import with role: embedder) or a language"),
    (rows_of(f"{RUN}:seed", "train", "tset"), "dev, other", "one of dev"),
    (rows_of(f"{RUN}:dpo", "train"), "none, as a dpo", "sample stage made"),
])
def test_the_wrong_kind_is_refused_before_the_run_and_by_it(
    stage: dict[str, Any], found: str, expected: str, theirs: Built
) -> None:
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.checks.stages import wrong

    run = ours(theirs.store.url, stage)
    checked = [error for one in run.stages for _, error in wrong(run, one, Sight(READ_LIMIT))]
    for error in (*checked, refused(theirs.store.url, stage)):
        assert found in str(error.found)
        assert expected in str(error.expected)
    assert len(checked) == 1


def test_a_damaged_one_is_refused_though_its_size_is_right(theirs: Built) -> None:
    dpo = theirs.artifacts["dpo"]
    file = dpo.path() / "model" / "weights.safetensors"
    text = file.read_text()
    file.write_text(text.swapcase())
    assert "differs from its digest" in str(refused(theirs.store.url, model(dpo.key)).found)
    file.write_text(text[1:])
    assert "bytes, not" in str(refused(theirs.store.url, model(dpo.key)).found)


def test_an_adapter_whose_base_is_gone_and_a_lineage_that_is_gone_are_refused(theirs: Built, tmp_path: Path) -> None:
    stage = model(f"{RUN}:dpo", store=theirs.store.url)
    shutil.rmtree(theirs.artifacts["base"].path())
    assert "full weights that the adapter stands on" in refused(str(tmp_path / "our"), stage).problem
    shutil.rmtree(theirs.artifacts["seed"].path())
    error = refused(theirs.store.url, model(f"{RUN}:dpo"))
    assert "nobody knows which rows" in error.problem
    assert "source: folder" in str(error.hint)
