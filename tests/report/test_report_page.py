"""The page: renders for every state of a run, is well-formed, loads nothing, escapes everything, says what is so."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alignment import report
from alignment.artifacts import Artifact, FileEntry, RowCounts, Store, sha256_of
from alignment.config import Run
from alignment.errors import ArtifactError
from alignment.report import render
from tests.report.conftest import BASE, EVIL, SEED, finish, publish, results, run_of, train

VOID = {"meta", "br", "link", "img", "input", "hr"}
NOW = "2026-01-02T04:00:00Z"


class Checked(HTMLParser):
    """Keeps the open elements; every end must match the last start."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def check(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert all(link.startswith("#") and link[1:] in parser.ids for link in parser.links), parser.links
    assert len(set(parser.ids)) == len(parser.ids)
    assert not re.search(r"url\(|@import", page)
    assert parser.tags.count("script") == 1
    assert "img" not in parser.tags
    return parser


def text_of(page: str) -> str:
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def page(finished: tuple[Run, dict[str, Artifact]]) -> str:
    return render(*finished, "run 'my runs/qa.yaml'", NOW)


def test_a_finished_run(page: str) -> None:
    check(page)
    text = text_of(page)
    assert ("Exact match rose from 0.200 [0.150, 0.250] with base to 0.600 [0.550, 0.650] with dpo"
            " on 80 held-out rows.") in text
    assert "1 of 3 aims met, 1 missed, 1 not known yet." in text
    assert "2026-01-02 03:04 UTC to 2026-01-02 03:14 UTC, 10 min 00 s with all waits; 8 min 00 s of work" in text
    assert "frozen copy of the start adapter" in text
    assert "not finished" not in text.replace("a dashed box is not finished", "")
    assert page.count("<polyline") > 8
    assert text.count("wrong before and now") > 3


def test_it_is_the_same_each_time(page: str, finished: tuple[Run, dict[str, Artifact]]) -> None:
    assert render(*finished, "run 'my runs/qa.yaml'", NOW) == page


def test_texts_of_the_data_stay_texts(page: str) -> None:
    assert EVIL in unescape(page)
    assert "<script>alert" not in page
    assert "evil.example" in page
    assert "<img" not in page


def test_the_policy_allows_this_script_alone(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy is not None
    assert script is not None
    assert "default-src 'none'" in unescape(policy[1])
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()}'" in unescape(policy[1])


def test_aims_are_judged_plainly(page: str) -> None:
    rows = re.findall(r'<tr class="(met|missed|unknown)">.*?</tr>', page, re.DOTALL)
    assert rows == ["met", "missed", "unknown"]
    missed = re.search(r'<tr class="missed">.*?</tr>', page, re.DOTALL)
    assert missed is not None
    assert text_of(missed[0]) == "rm.eval_accuracy >= 0.9 0.800 >= 0.900 ✗ missed"


def test_the_best_model_is_marked_and_the_reference_is_none(page: str) -> None:
    best = re.findall(r'<td class="best"><span class="value">([^<]+)</span>', page)
    assert best == ["0.600", "0.700", "0.60", "3.00"]  # exact match, F1, reward, perplexity; words have no best


def test_win_rates_and_differences(page: str) -> None:
    text = text_of(page)
    assert "50 won, 12 tied, 18 lost" in text
    assert "+0.400 [0.300, 0.500]" in text
    assert "no clear difference" not in text
    assert page.count('class="reference"') >= 6


def test_dropped_rows_and_where_they_are_kept(page: str, finished: tuple[Run, dict[str, Artifact]]) -> None:
    text = text_of(page)
    assert "60 odd reason" in text
    assert f"artifacts/{finished[1]['seed'].key}/bad.jsonl" in text


def test_commands(page: str) -> None:
    text = text_of(page)
    for line in ("kubealign run 'my runs/qa.yaml'", "kubealign status 'my runs/qa.yaml'", "--set dpo.epochs=2",
                 "ray job submit --working-dir . -- python ray_jobs/evaluate.py 'my runs/qa.yaml' eval"):
        assert line in text


def test_the_commands_are_those_that_the_user_typed(finished: tuple[Run, dict[str, Artifact]]) -> None:
    text = text_of(render(*finished, "submit qa.yaml --profile dev-cpu --namespace lab", NOW))
    assert "kubealign submit qa.yaml --profile dev-cpu --namespace lab --set dpo.epochs=2" in text
    assert "kubealign report qa.yaml --profile dev-cpu --namespace lab" in text
    assert "kubealign run" not in text
    assert "ray job" not in text
    text = text_of(render(*finished, "run qa.yaml --set seed=3", NOW))
    assert "kubealign run qa.yaml --set seed=3 --stage eval" in text
    assert "ray_jobs/" not in text, "a script knows no options"
    assert "kubealign submit RUN.yaml --profile PROFILE" in text_of(render(*finished, None, NOW)), "in a pod"


def test_the_last_policy_is_loaded_asked_and_served(finished: tuple[Run, dict[str, Artifact]]) -> None:
    text = text_of(render(*finished, "run qa.yaml", NOW))
    assert "AutoModelForCausalLM.from_pretrained(" in text
    assert "apply_chat_template" in text
    assert "vllm serve merged" in text


def test_work_and_waits_are_told_apart(page: str) -> None:
    text = text_of(page)
    assert "10 min 00 s with all waits; 8 min 00 s of work in finished stages" in text


def test_files_that_are_gone_are_named_and_not_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    made = finish(run)
    (made["eval"].path() / "answers.jsonl").unlink()
    with pytest.raises(ArtifactError, match="gone or damaged") as caught:
        render(run, made, "run qa.yaml", NOW)
    assert "answers.jsonl is gone" in str(caught.value)
    assert f"rm -r {made['eval'].url}, then run again" in str(caught.value.hint)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 7])
def test_an_unfinished_run(finished: tuple[Run, dict[str, Artifact]], count: int) -> None:
    run, artifacts = finished
    some: dict[str, Artifact | None] = {name: artifacts[name] if index < count else None
                                        for index, name in enumerate(artifacts)}
    page = render(run, some, "run qa.yaml", NOW)
    check(page)
    text = text_of(page)
    assert f"{count} of 8 stages finished." in text
    assert "Stage eval is not finished" in text
    assert page.count(' missing"') == 8 - count
    assert render(run, {k: v for k, v in some.items() if v}, "run qa.yaml", NOW) == page, "absent is None"
    left = [stage.name for stage in run.stages][count]
    assert f"kubealign run qa.yaml --stage {left}" in text


def test_a_run_without_evaluation_sampling_and_aims(tmp_path: Path) -> None:
    run = run_of(tmp_path, [BASE, SEED, train("sft", "sft", "base", "seed/train")], [])
    page = render(run, finish(run), "run qa.yaml", NOW)
    check(page)
    text = text_of(page)
    assert "All 3 stages finished; this run evaluates no model." in text
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["The chain", "Training", "Rows left out or changed", "Stages",
                                                   "What next"]
    assert re.findall(r'<li><a href="#(\w+)"', page) == ["chain", "training", "rows", "stages", "next"]


def changed(made: dict[str, Artifact], file: str, text: str) -> dict[str, Artifact]:
    """Artifacts whose evaluation has another file, as if it had been made so."""
    path = made["eval"].path() / file
    path.write_text(text, encoding="utf-8")
    manifest = made["eval"].manifest
    entry = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
    return {**made, "eval": Artifact(made["eval"].store, manifest.model_copy(
        update={"files": {**manifest.files, file: entry}}))}


def saying(made: dict[str, Artifact], **values: object) -> dict[str, Artifact]:
    """Artifacts whose evaluation says this as well."""
    text = (made["eval"].path() / "results.json").read_text("utf-8")
    return changed(made, "results.json", json.dumps({**json.loads(text), **values}))


def test_nothing_went_from_a_value_to_the_same(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    made = finish(run)
    told = json.loads((made["eval"].path() / "results.json").read_text("utf-8"))
    told["differences"] = []
    told["models"]["dpo"]["exact_match"] = told["models"]["base"]["exact_match"]
    text = text_of(render(run, changed(made, "results.json", json.dumps(told)), "run qa.yaml", NOW))
    assert "Exact match is 0.200 [0.150, 0.250] with base and with dpo on 80 held-out rows." in text


def test_the_whole_took_no_less_than_its_parts(tmp_path: Path) -> None:
    run = run_of(tmp_path, [BASE], [])
    made = publish(Store(run.store), run, "base", {}).manifest
    at = "2026-01-02T03:04:05Z"
    quick = Artifact(Store(run.store), made.model_copy(update={"started": at, "finished": at, "seconds": 0.4}))
    assert "0.4 s with all waits; 0.4 s of work" in text_of(render(run, {"base": quick}, "run qa.yaml", NOW))


def test_free_text_is_not_judged_by_exact_match(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    made = saying(finish(run), reference_words=40.0)
    text = text_of(render(run, made, "run qa.yaml", NOW))
    assert "F1 went from 0.300 [0.250, 0.350] with base to 0.700" in text
    assert "The references are free text" in text
    assert "wrong before" not in text
    assert "not exact" not in text
    short = text_of(render(run, saying(made, reference_words=12.0), "run qa.yaml", NOW))
    assert "Exact match rose from" in short
    assert "free text" not in short


@pytest.mark.parametrize("reason", ["not taken", "not-taken"])
def test_rows_beyond_take_are_counted_as_such(tmp_path: Path, reason: str) -> None:
    run = run_of(tmp_path)
    made: dict[str, Artifact | None] = dict(finish(run))
    made["eval"] = publish(Store(str(tmp_path / "other")), run, "eval", {
        "results.json": json.dumps(results()), "bad.jsonl": "{}\n"},
        rows=RowCounts(read=1390, written={"answers": 80}, dropped={reason: 1310}))
    page = render(run, made, "run qa.yaml", NOW)
    check(page)
    text = text_of(page)
    assert "on 80 held-out rows (1,310 more not taken)." in text
    assert "1,310 more rows left out by take ." in text
    assert "eval 1,390 answers 80 none 1,310 none" in text, "not among those left out, and kept nowhere"


def test_an_aim_that_is_missed_by_little_shows_by_how_much(tmp_path: Path) -> None:
    run = run_of(tmp_path, aims=["rm.eval_accuracy > 0.80001", "rm.eval_accuracy >= 0.8"])
    text = text_of(render(run, finish(run), "run qa.yaml", NOW))
    assert "rm.eval_accuracy > 0.80001 0.80000 > 0.80001 ✗ missed" in text
    assert "rm.eval_accuracy >= 0.8 0.800 >= 0.800 ✓ met" in text


def test_a_conversation_is_shown_whole(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    said = [("system", "Be brief."), ("user", f"Who? {EVIL}"), ("assistant", "Ada."), ("user", "And when?")]
    turns = [{"role": role, "content": text} for role, text in said]
    line = {"id": "r0", "kind": None, "prompt": turns, "reference": "1815", "answers": {
        name: {"text": "1815"} for name in ("base", "dpo")}}
    made = changed(finish(run), "answers.jsonl", json.dumps(line) + "\n")
    page = render(run, made, "run qa.yaml", NOW)
    check(page)
    assert page.count('dir="auto"') == 1 + 3 + 1 + 2, "question, turns, reference and answers run as their script does"
    assert f"And when? 3 turns before it system Be brief. user Who? {EVIL} assistant Ada." in text_of(page)


def test_bare_manifests_and_results(tmp_path: Path) -> None:
    """Metrics, events and parts of the results may be absent; None stands for what is undefined."""
    stages = [BASE, SEED, train("sft", "sft", "base", "seed/train"),
              {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "seed/test"}]
    run = run_of(tmp_path, stages, [])
    store = Store(run.store)
    lines = {"base": {"f1": {"value": 0.5, "low": None, "high": None}}, "sft": {"f1": {"value": None}}}
    bare = {"rows": 3, "models": lines}
    made = {name: publish(store, run, name, {"results.json": json.dumps(bare)} if name == "eval" else {"x": ""})
            for name in ("base", "seed", "sft", "eval")}
    page = render(run, made, "run qa.yaml", NOW)
    check(page)
    assert "No training events were kept." in text_of(page)
    assert "base, sft evaluated on 3 held-out rows." in text_of(page)


def test_every_part_of_the_page_stands_in_its_contents() -> None:
    page = (Path(report.__file__).parent / "page" / "report.html.jinja").read_text(encoding="utf-8")
    parts = re.findall(r'<section id="(\w+)"', page)
    assert len(parts) > 10
    assert [id for id in parts if f'("{id}", ' not in page] == []


def test_the_headline_is_about_a_metric_in_which_a_model_has_anything(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    none, made = results(), finish(run)
    for model in none["models"].values():
        if "exact_match" in model:
            model["exact_match"]["value"] = 0.0
    text = text_of(render(run, changed(made, "results.json", json.dumps(none)), "run qa.yaml", NOW))
    assert "F1 went from 0.300 [0.250, 0.350] with base to 0.700" in text
    for model in none["models"].values():
        model.pop("f1", None)
        model["reward"] = {}
    text = text_of(render(run, changed(made, "results.json", json.dumps(none)), "run qa.yaml", NOW))
    assert "Exact match rose from 0.000" in text


def test_damaged_results_are_named(tmp_path: Path) -> None:
    stages = [BASE, SEED, {"name": "eval", "kind": "evaluate", "models": ["base"], "rows": "seed/test"}]
    run = run_of(tmp_path, stages, [])
    made = {"eval": publish(Store(run.store), run, "eval", {"results.json": "{"})}
    with pytest.raises(ArtifactError, match="damaged") as caught:
        render(run, made, "run qa.yaml", NOW)
    assert "results.json" in str(caught.value)


def test_a_difference_that_may_be_none_is_not_called_one(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    shaky = results()
    for entry in shaky["differences"]:
        entry["low"] = -0.01
    made = changed(finish(run), "results.json", json.dumps(shaky))
    text = text_of(render(run, made, "run qa.yaml", NOW))
    assert "Exact match shows no clear change: from 0.200" in text
    assert "no clear difference" in text
