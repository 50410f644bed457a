"""Groups: rounds over a few stages are written out when the file is loaded, and a finding stands at the user's line."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from alignment.config import Choose, Evaluate, Run, TrainBase, load_run, parse_run, place_of
from alignment.config.rounds import once
from alignment.errors import ConfigError, ConfigErrors
from alignment.pipeline.keys import keys
from alignment.reference.aims import unmade

GROUP = """\
name: small
params: {n: 3, rows: rows.jsonl}
stages:
  - name: base
    kind: import
    model: {source: tiny}
  - name: seed
    kind: import
    data: [{path: "${rows}", format: passage-qa}]
    split: {by: ratio, ratios: {train: 0.6, dev: 0.2, test: 0.2}}
  - {name: sft, kind: train, method: sft, model: base, rows: [seed/train]}
  - group: improve
    rounds: ${n}
    first: {dpo: sft}
    stages:
      - name: rs
        kind: sample
        model: previous.dpo
        prompts: [seed/train]
        score: {function: brevity}
      - name: dpo
        kind: train
        method: dpo
        model: previous.dpo
        reference_model: sft
        rows: [rs/pairs]
      - name: dev
        kind: evaluate
        models: [sft, previous.dpo, dpo]
        compare: [[dpo, previous.dpo]]
        rows: seed/dev
  - name: eval
    kind: evaluate
    models: [base, dpo]
    rows: seed/test
aims: [eval.dpo.f1 > eval.base.f1, dev.dpo_vs_sft.style_win_rate > 0.5, dpo.train_loss < 1, eval.base.f1 > 0.1]
"""
WHOLE = GROUP.replace("models: [sft, previous.dpo, dpo]", "models: [previous.dpo, dpo]")


GATE = "dev.dpo_vs_previous.dpo.f1_gain > 0"
GATED = WHOLE.replace("    rounds: ${n}\n", f"    rounds: ${{n}}\n    gate: {GATE}\n").replace(
    "dev.dpo_vs_sft.style_win_rate > 0.5, dpo.train_loss < 1, ", "")


def names(run: Run) -> list[str]:
    return [stage.name for stage in run.stages]


def broken(old: str, new: str, text: str = WHOLE, **more: list[str]) -> list[tuple[str, str, str]]:
    """(place, problem, expected) of each finding."""
    assert old in text
    with pytest.raises(ConfigErrors) as caught:
        parse_run(text.replace(old, new, 1), "g.yaml", **more)
    return [(str(one.where), one.problem, str(one.expected)) for one in caught.value.findings]


def test_rounds_are_plain_stages_that_read_the_round_before() -> None:
    run = parse_run(WHOLE)
    assert names(run) == ["base", "seed", "sft", "rs-1", "dpo-1", "dev-1", "rs-2", "dpo-2", "dev-2", "rs-3", "dpo-3",
                          "dev-3", "eval"]
    assert [ref.stage for ref in run.stage("rs-1").model_refs()] == ["sft"]
    assert [ref.stage for ref in run.stage("rs-3").model_refs()] == ["dpo-2"]
    assert [ref.stage for ref in run.stage("dpo-2").model_refs()] == ["dpo-1", "sft"]
    assert [place.ref for place in run.stage("dpo-2").row_refs()] == ["rs-2/pairs"]
    dev, dpo, last = run.stage("dev-2"), run.stage("dpo-2"), run.stage("eval")
    assert isinstance(dev, Evaluate)
    assert isinstance(dpo, TrainBase)
    assert isinstance(last, Evaluate)
    assert (dev.models, dev.compare) == (("dpo-1", "dpo-2"), (("dpo-2", "dpo-1"),))
    assert dpo.method == "dpo", "a value that is no name of a stage stays, though it reads like one"
    assert last.models == ("base", "dpo-3"), "after the group a name means its last round"


def test_aims_mean_the_last_round_too() -> None:
    assert parse_run(WHOLE).aims == (
        "eval.dpo-3.f1 > eval.base.f1", "dev-3.dpo-3_vs_sft.style_win_rate > 0.5", "dpo-3.train_loss < 1",
        "eval.base.f1 > 0.1")


def test_a_group_makes_what_the_same_stages_written_out_make(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    run = parse_run(WHOLE, overrides=[f"params.rows={tmp_path}/rows.jsonl"])
    tree = run.model_dump(mode="json", exclude={"groups"})
    assert {name: key.key for name, key in keys(parse_run(yaml.safe_dump(tree))).items()} == {
        name: key.key for name, key in keys(run).items()}


def test_the_expanded_run_is_a_run_file_that_loads_as_itself() -> None:
    run = parse_run(WHOLE)
    assert parse_run(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)) == run
    assert run.groups is not None
    assert [(group.name, group.rounds[1]) for group in run.groups] == [("improve", ("rs-2", "dpo-2", "dev-2"))]


def test_a_run_without_a_group_is_as_it_was(run_text: str) -> None:
    assert parse_run(run_text).groups is None


def test_overrides_reach_the_group_all_rounds_and_one() -> None:
    run = parse_run(WHOLE, overrides=["dpo-2.epochs=3", "improve.rounds=2", "dpo.epochs=2", "dpo.trl.beta=0.2",
                                      "eval.batch_size=7"])
    assert names(run)[-4:] == ["rs-2", "dpo-2", "dev-2", "eval"]
    one, two = run.stage("dpo-1"), run.stage("dpo-2")
    assert isinstance(one, TrainBase)
    assert isinstance(two, TrainBase)
    assert (one.epochs, two.epochs) == (2, 3), "one round's own counts after the group's, whatever stands first"
    assert one.trl == two.trl == {"beta": 0.2}


def test_an_override_of_a_round_that_there_is_not_names_those_that_there_are() -> None:
    [(where, problem, expected)] = broken("name: small", "name: small", overrides=["dpo-4.epochs=2"])
    assert where == "--set dpo-4.epochs=2"
    assert "neither a top-level key nor a stage's key" in problem
    assert "dpo-3.KEY" in expected


def test_parameters_are_filled_in_before_rounds_are_counted() -> None:
    assert names(parse_run(WHOLE, overrides=["params.n=1"]))[3:] == ["rs-1", "dpo-1", "dev-1", "eval"]


def test_what_is_wrong_in_every_round_is_said_once_at_its_line_in_the_group() -> None:
    for old, new, key, problem in (
        ("rows: [rs/pairs]", "rows: [rs/pears]", "stages[3].stages[1].rows[0]", "rows that no stage makes"),
        ("rows: [rs/pairs]", "rows: [rs/pairs]\n        batch: 3", "stages[3].stages[1].batch", "an unknown key"),
        ("reference_model: sft", "reference_model: seed", "stages[3].stages[1].reference_model", "language model"),
        ("score: {function: brevity}", "score: {function: brevity}\n        n: 1", "stages[3].stages[0]", "needs n"),
    ):
        line = 1 + (WHOLE.replace(old, new, 1).splitlines().index(
            next(line for line in WHOLE.replace(old, new, 1).splitlines() if new.splitlines()[-1] in line)))
        [(where, said, _)] = broken(old, new)
        assert problem in said
        if "n: 1" not in new:
            assert where == f"g.yaml:{line} ({key})"
        else:
            assert where.endswith(f"({key})")


def test_what_is_wrong_in_one_round_names_it() -> None:
    [(where, problem, _)] = broken("first: {dpo: sft}", "first: {dpo: seed}", text=WHOLE.replace(
        "        reference_model: sft\n", "").replace("models: [previous.dpo, dpo]", "models: [base, dpo]").replace(
        "        compare: [[dpo, previous.dpo]]\n", "").replace("model: previous.dpo\n        prompts", "model: sft\n"
                                                               "        prompts"))
    assert where == "g.yaml:24 (stages[3].stages[1].model, round 1)"
    assert "language model" in problem


@pytest.mark.parametrize(("old", "new", "where", "problem", "expected"), [
    ("first: {dpo: sft}", "firsts: {dpo: sft}", "g.yaml:14 (stages[3].firsts)", "an unknown key", "perhaps first"),
    ("    first: {dpo: sft}\n", "", "g.yaml:17 (stages[3].stages[0].model", "round 1 has no round before it",
     "first: {dpo: STAGE}"),
    ("rounds: ${n}", "rounds: 0", "g.yaml:13 (stages[3].rounds)", "too small", "at least 1"),
    ("rounds: ${n}", "rounds: 400", "g.yaml:13 (stages[3].rounds)", "too large", "at most 50"),
    ("rounds: ${n}", "rounds: many", "g.yaml:13 (stages[3].rounds)", "not a whole number", "whole number"),
    ("model: previous.dpo\n        prompts", "model: previous.sft\n        prompts",
     "g.yaml:18 (stages[3].stages[0].model", "no stage of the group has this name", "previous.dpo"),
    ("first: {dpo: sft}", "first: {dpo: sft, rs: seed}", "g.yaml:14 (stages[3].first.rs)", "no stage of the group asks",
     "previous.rs"),
    ("first: {dpo: sft}", "first: {dpo: rs}", "g.yaml:14 (stages[3].first.dpo)", "of the group itself", "before the"),
    ("first: {dpo: sft}", "first: {dpx: sft}", "g.yaml:14 (stages[3].first.dpx)", "has no such stage", "rs, dpo, dev"),
    ("- name: dev\n", "- name: rs-2\n", "g.yaml:27 (stages[3].stages[2].name)", "a round of rs is called", "own"),
    ("- name: dev\n", "- name: dpo\n", "g.yaml:27 (stages[3].stages[2].name)", "same name", "own"),
    ("group: improve", "group: dpo", "g.yaml:12 (stages[3].group)", "the name of the group", "own"),
    ("      - name: rs\n", "      - group: rs\n", "g.yaml:16 (stages[3].stages[0]", "a key is missing", "name: ..."),
    ("  - name: eval\n", "  - name: dpo-2\n", "(stages[4].name)", "same name", "own"),
    ("name: small", "name: small\ngroups: []", "(groups)", "stands beside one", "the groups"),
])
def test_a_wrong_group_is_told_at_its_line(old: str, new: str, where: str, problem: str, expected: str) -> None:
    found = broken(old, new)
    assert any(where in one[0] and problem in one[1] and expected in one[2] for one in found), found


def test_what_check_finds_later_stands_at_the_line_of_the_group_as_it_was_loaded(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text(WHOLE, encoding="utf-8")
    run = load_run(file, ["improve.rounds=5"])
    where = place_of(file, ("stages", names(run).index("dpo-5"), "rows", 0))
    assert where == f"{file}:26 (stages[3].stages[1].rows[0], round 5)"
    assert place_of(file, ("stages", len(run.stages) - 1, "rows")) == f"{file}:35 (stages[4].rows)"


def test_two_groups_stand_one_after_another() -> None:
    more = """\
  - group: again
    rounds: 2
    first: {kto: dpo}
    stages:
      - {name: kto, kind: train, method: kto, model: previous.kto, rows: [rs/pairs], reference_model: dpo}
  - name: eval
"""
    run = parse_run(WHOLE.replace("  - name: eval\n", more))
    assert names(run)[-3:] == ["kto-1", "kto-2", "eval"]
    assert [ref.stage for ref in run.stage("kto-1").model_refs()] == ["dpo-3", "dpo-3"]
    assert [place.ref for place in run.stage("kto-2").row_refs()] == ["rs-3/pairs"]


def test_an_alias_means_the_same_in_every_round() -> None:
    text = WHOLE.replace("rows: seed/dev", "rows: &held seed/dev").replace("rows: seed/test", "rows: *held")
    text = text.replace("models: [base, dpo]", "models: &both [base, dpo]")
    assert isinstance(last := parse_run(text).stage("eval"), Evaluate)
    assert (last.rows, last.models) == ("seed/dev", ("base", "dpo-3"))


def test_the_schema_of_editors_takes_a_group_and_refuses_a_wrong_one() -> None:
    from alignment.cli.info import run_schema

    schema = run_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    tree = yaml.safe_load(WHOLE.replace("${n}", "3"))
    jsonschema.validate(tree, schema, cls=jsonschema.Draft202012Validator)
    for change in ({"rounds": 0}, {"fist": {}}, {"stages": []}):
        wrong = yaml.safe_load(WHOLE.replace("${n}", "3"))
        wrong["stages"][3] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema, cls=jsonschema.Draft202012Validator)
    outside = yaml.safe_load(WHOLE.replace("${n}", "3"))
    outside["stages"][2]["model"] = "previous.dpo"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(outside, schema, cls=jsonschema.Draft202012Validator)


def test_it_is_explained() -> None:
    from alignment.reference.ask import find

    assert "round before" in find("group").text
    assert "round 1" in find("group.first").text


# --- rounds that end where a gate is not met ---


def test_with_a_gate_the_groups_name_is_a_stage_that_chooses_among_the_rounds() -> None:
    run = parse_run(GATED)
    assert names(run)[3:] == ["rs-1", "dpo-1", "dev-1", "rs-2", "dpo-2", "dev-2", "rs-3", "dpo-3", "dev-3", "dpo",
                              "eval"]
    chooser, last = run.stage("dpo"), run.stage("eval")
    assert isinstance(chooser, Choose)
    assert isinstance(last, Evaluate)
    assert chooser.models == ("sft", "dpo-1", "dpo-2", "dpo-3")
    assert chooser.bounds == ("dev-1.dpo-1_vs_sft.f1_gain > 0", "dev-2.dpo-2_vs_dpo-1.f1_gain > 0",
                              "dev-3.dpo-3_vs_dpo-2.f1_gain > 0")
    assert chooser.inputs() == ("sft", "dpo-1", "dev-1", "dpo-2", "dev-2", "dpo-3", "dev-3")
    assert last.models == ("base", "dpo"), "which round that will be is known only when it is made"
    assert run.aims == ("eval.dpo.f1 > eval.base.f1", "eval.base.f1 > 0.1")
    assert [(one.group, one.result, len(one.bounds)) for one in run.stops()] == [("improve", "dpo", 3)]
    assert parse_run(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)) == run


def test_a_gate_may_compare_numbers_of_one_round_by_its_own_names() -> None:
    run = parse_run(GATED.replace(GATE, "dev.dpo.f1 > dev.previous.dpo.f1"))
    assert run.stage("dpo").held_to()[1].metrics == ("dev-2.dpo-2.f1", "dev-2.dpo-1.f1")


def test_a_second_group_goes_on_from_the_chosen_round() -> None:
    more = """\
  - group: again
    rounds: 2
    first: {kto: dpo}
    stages:
      - {name: kto, kind: train, method: kto, model: previous.kto, rows: [seed/train], reference_model: dpo}
  - name: eval
"""
    run = parse_run(GATED.replace("  - name: eval\n", more))
    assert [ref.stage for ref in run.stage("kto-1").model_refs()] == ["dpo", "dpo"]


def test_a_stage_after_the_rounds_continues_the_adapter_of_the_group() -> None:
    stage = "  - {name: more, kind: train, method: sft, model: dpo, rows: [seed/train], strategy: {kind: lora, r: 3}}\n"
    [(where, problem, _)] = broken("  - name: eval\n", f"{stage}  - name: eval\n", text=GATED)
    assert "more" not in problem
    assert "continues the adapter of stage dpo" in problem
    assert where.endswith("(stages[4].strategy)")


@pytest.mark.parametrize(("old", "new", "where", "problem", "expected"), [
    (GATE, "dev.dpo f1 > 0", "g.yaml:14 (stages[3].gate)", "not a bound", "STAGE.METRIC"),
    (GATE, "dev.dpo_vs_previous.sft.f1_gain > 0", "(stages[3].gate)", "no stage of the group", "previous.rs"),
    (GATE, "dev.dpo.f1 > previous.dev.dpo.f1", "g.yaml:14 (stages[3].gate)", "round 1 has no round", "first: {dev:"),
    (GATE, "sft.train_loss > 0", "g.yaml:14 (stages[3].gate)", "the same in each", "rs, dpo, dev"),
    ("first: {dpo: sft}", "first: {}", "g.yaml:14 (stages[3].gate)", "no model to go on with", "first: {NAME: STAGE}"),
    ("models: [base, dpo]", "models: [base, dpo-2]", "g.yaml:35 (stages[4].models[1])", "may never be made", "dpo, or"),
    ("rows: seed/test", "rows: rs/best", "g.yaml:36 (stages[4].rows)", "may never be made", "dpo, or"),
    ("rows: seed/test", "rows: seed/dev", "g.yaml:36 (stages[4].rows)", "read by stage dev-1", "seed/test"),
    ("[eval.dpo.f1 >", "[dpo-3.train_loss < 1, eval.dpo.f1 >", "g.yaml:37 (aims[0])", "may never be made", "dpo, or"),
    ("  - name: eval\n", "  - name: dpo\n", "(stages[4].name)", "same name", "own"),
])
def test_a_gate_that_cannot_be_kept_is_told_at_its_line(
    old: str, new: str, where: str, problem: str, expected: str) -> None:
    found = broken(old, new, text=GATED)
    assert any(where in one[0] and problem in one[1] and expected in one[2] for one in found), found


def test_a_gate_on_a_number_that_is_never_made_is_found_before_the_launch(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text(GATED.replace("f1_gain", "f1_gian"), encoding="utf-8")
    run = load_run(file)
    found = [(place_of(file, place), error.problem, error.expected) for place, error in unmade(run)]
    assert found[0][0] == f"{file}:14 (stages[3].gate, round 1)"
    assert "a gate names a metric that its stage does not make" in found[0][1]
    assert "dev-1.dpo-1_vs_sft.f1_gain" in str(found[0][2])
    assert len(once([ConfigError(problem, where=where) for where, problem, _ in found])) == 1, "said once for all"


def test_a_result_must_stand_for_the_rounds_of_its_group() -> None:
    tree = yaml.safe_load(yaml.safe_dump(parse_run(GATED).model_dump(mode="json")))
    tree["groups"][0]["rounds"].pop()
    with pytest.raises(ConfigErrors, match="does not stand for these rounds"):
        parse_run(yaml.safe_dump(tree))
