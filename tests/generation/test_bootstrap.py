"""The state of a Self-Instruct run: rounds, budgets, and that nothing depends on the order of answers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from alignment.config import SelfInstruct
from alignment.config.prompts import read_prompt
from alignment.generation.asking import Ask, Said
from alignment.generation.bootstrap import Bootstrap
from alignment.generation.tasks import Instance, Task
from alignment.inference.requests import Request
from tests.generation.scripted import Answer, good_teacher

SEEDS = [Task(f"s{number}", f"Say what seed task number {number} of {word} is about.", number % 4 == 0,
              [Instance("", f"answer {number}")])
         for number, word in enumerate(["apples", "boats", "clocks", "drums", "eels", "figs", "goats", "hats", "ink",
                                        "jars"])]


def state(seed: int = 3, **more: Any) -> Bootstrap:
    stage = SelfInstruct.model_validate({
        "name": "gen", "recipe": "self_instruct", "teacher": "base", "seeds": ("seeds/train",), "take": 12,
        "requests_per_round": 3, "rounds": 6, **more})
    texts = {prompt.step: read_prompt(prompt, "test") for prompt in stage.prompt_files()}
    return Bootstrap(stage, SEEDS, seed, stage.take, texts, "m" * 64)


def said(asks: list[Ask], answer: Answer = good_teacher) -> dict[str, Said]:
    found = {}
    for ask in asks:
        text, finished = answer(Request(ask.id, ask.prompt, ()))
        found[ask.id] = Said(ask.id, text, finished, len(text.split()))
    return found


def through(made: Bootstrap, answer: Answer = good_teacher, shuffled: bool = False) -> Bootstrap:
    def answered(asks: list[Ask]) -> dict[str, Said]:
        order = list(asks)
        if shuffled:
            random.Random(len(asks)).shuffle(order)
        return said(order, answer)

    while asks := made.ask():
        made.read(asks, answered(asks))
    made.read_kinds(asks := made.kinds(), answered(asks))
    made.read_examples(asks := made.examples(), answered(asks))
    return made


def test_a_good_teacher_fills_the_pool_with_tasks_that_say_what_made_them() -> None:
    made = through(state())
    assert len(made.tasks) == 12
    assert made.asked == {"instructions": 3 * made.round, "classification": 12, "input_first": 12}
    known = {task.id for task in (*SEEDS, *made.tasks)}
    for place, task in enumerate(made.tasks):
        assert task.id.startswith(task.origin["request"])
        assert len(task.origin["seeds"]) + len(task.origin["machine"]) == 8
        earlier = {one.id for one in made.tasks[:place]}
        assert {*task.origin["machine"]} <= earlier, "a round shows what the rounds before it kept"
        assert len(task.similar) <= 10
        assert {id_ for id_, _ in task.similar} <= known
        assert all(score <= 0.7 for _, score in task.similar)
        assert task.origin["instances"]["request"] == f"{task.id}-examples"
    assert any(task.origin["machine"] for task in made.tasks)


def test_nothing_depends_on_the_order_in_which_answers_come() -> None:
    one, other = through(state()), through(state(), shuffled=True)
    assert (one.tasks, one.bad) == (other.tasks, other.bad)
    assert [ask.text for ask in state().ask()] != [ask.text for ask in state(seed=4).ask()]


def test_a_teacher_that_says_nothing_useful_is_asked_no_more_after_the_rounds_of_patience() -> None:
    for text, finished, reason in (("", True, "empty-response"), ("9. Sing", True, "too-short"),
                                   ("9. 请写一首关于夏天的诗", True, "not-ascii-first"),
                                   ("9. a long one", False, "response-cut"),
                                   ("9. Écris un poème sur la mer", True, "not-ascii-first")):
        made = through(state(patience=2), lambda request, text=text, finished=finished: (text, finished))
        assert made.round == 2
        assert {one.reason for one in made.bad} == {reason}
        assert made.tasks == []


def test_a_teacher_that_repeats_itself_is_refused_as_a_duplicate_or_not_new() -> None:
    made = through(state(patience=2, take=9), lambda request: (
        "9. Describe a small harbour at night\n10. describe a small  harbour at night\n"
        "11. Describe the small harbour at night", True))
    reasons = [one.reason for one in made.bad if one.step == "instructions"]
    assert len(made.tasks) == 0, "its examples have no form, so nothing is left"
    assert reasons.count("duplicate") + reasons.count("not-novel") == made.proposed - 1
    near = next(one for one in made.bad if one.reason == "not-novel")
    assert near.origin["nearest"][1] > 0.7


@pytest.mark.parametrize("most", [3, 7, 10, 40])
def test_the_budget_is_never_passed_and_what_it_leaves_out_says_so(most: int) -> None:
    made = through(state(max_requests=most))
    assert made.asked.total() <= most
    assert made.tasks
    assert all(task.instances for task in made.tasks)
    proposed = {one.id for one in made.bad if one.step == "instructions"} | {task.id for task in made.tasks}
    assert len(proposed) == made.proposed


def test_a_task_without_a_readable_kind_is_no_classification_and_counted() -> None:
    made = through(state(), lambda request: (
        ("Perhaps", True) if request.id.endswith("-kind") else good_teacher(request)))
    assert made.unclear == len(made.tasks) == 12
    assert not any(task.is_classification for task in made.tasks)


def test_classifications_are_asked_label_first_after_seeds_of_their_kind() -> None:
    def answer(request: Request) -> tuple[str, bool]:
        if request.id.endswith("-kind"):
            return "Yes", True
        return (f"Class label: red\nInput: {request.id}", True) if request.id.endswith("-examples") else (
            good_teacher(request))

    made = through(state(), answer)
    assert made.asked["output_first"] == 12
    kinds = {task.id: task.is_classification for task in SEEDS}
    assert all(kinds[id_] for task in made.tasks for id_ in task.origin["instances"]["seeds"])
    assert {one.output for task in made.tasks for one in task.instances} == {"red"}
