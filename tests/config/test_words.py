"""Wrong values at every key of a run and of a profile: each is told in this project's words, at its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from alignment.config import Profile, parse_run
from alignment.config.messages import BOUNDS, TYPES, told
from alignment.config.rounds import Group
from alignment.config.run import Run
from alignment.config.stages.fields import FORMS
from alignment.config.yaml_file import parse_tree, validated
from alignment.config.yaml_nodes import child
from alignment.config.yaml_text import compose, dump
from alignment.errors import ConfigError, ConfigErrors
from tests.config.test_described import MODELS
from tests.config.test_profile import PROFILE

PYDANTIC = re.compile(r"Input|should be|valid (tuple|string|integer|number|dict|bool|list)|tuple|dictionary|"
                      r"boolean|instance|Field required|discriminator|string|float\b|Value error|\bpattern\b|union|"
                      r"NoneType|True|False|None|not a value of this key")
VALUES = ["text", "", 7, -1, 0, 1.5, -2.5, True, None, [], ["x"], [1, 2], [[]], {}, {"x": 1}, {"x": {"y": [1]}},
          float("inf"), 10**30, "x" * 600, ["a b"] * 200, "1e-4", "yes", "A-B", {"A b": "c"},
          {f"k{i}": "v" for i in range(99)}]
EVERYTHING = {
    "name": "all", "description": "d", "seed": 1, "store": "runs", "scale": 1.0, "params": {"a": 1},
    "compute": {"workers": 1, "address": "auto", "device": "cpu", "dtype": "auto", "cpus_per_worker": 1.0,
                "gpus_per_worker": 0.0, "gpu": "h100", "sharding": "zero2",
                "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1}},
                "engine": "vllm", "vllm": {"max_num_seqs": 64}},
    "stages": [
        {"name": "hub", "kind": "import", "model": {"source": "hub", "repo": "a/b", "revision": "main",
                                                    "trust_remote_code": False}, "template": "chatml",
         "pad_token": "x", "dtype": "float32"},
        {"name": "folder", "kind": "import", "model": {"source": "folder", "path": "a", "package": "b"}},
        {"name": "judge", "kind": "import", "role": "reward", "model": {"source": "hub", "repo": "a/b"},
         "template": "chatml", "dtype": "float32"},
        {"name": "vectors", "kind": "import", "role": "embedder", "model": {"source": "tiny"}, "dtype": "bfloat16"},
        {"name": "gguf", "kind": "import", "model": {"source": "gguf", "file": "a", "package": "b"}},
        {"name": "base", "kind": "import", "model": {"source": "tiny", "hidden_size": 64, "layers": 2, "heads": 4,
                                                     "vocab_size": 512}, "special_tokens_in_text": "refuse",
         "new_tokens": ["<|eot|>"]},
        {"name": "theirs", "kind": "import", "model": {"source": "folder", "path": "a", "base": "base"}},
        {"name": "brought", "kind": "import", "model": {"source": "artifact", "artifact": "a:b", "store": "s3://c/d"}},
        {"name": "scores", "kind": "import", "role": "reward",
         "model": {"source": "artifact", "artifact": "reward-0123456789ab"}},
        {"name": "meanings", "kind": "import", "role": "embedder", "model": {"source": "artifact", "artifact": "a:b"}},
        {"name": "old", "kind": "import",
         "rows": {"artifact": "s/artifacts/sample-0123456789ab", "splits": ["best", "pairs"]}},
        {"name": "answers", "kind": "infer", "model": "brought", "prompts": "old/best", "n": 2, "batch_size": 4,
         "sampling": {"temperature": 1.0}, "max_prompt_tokens": 9, "dtype": "float32"},
        {"name": "teacher", "kind": "import",
         "model": {"source": "endpoint", "base_url": "http://h/v1", "model": "m", "key_env": "KEY", "takes": ["seed"],
                   "length_key": "max_tokens", "extra_body": {"a": 1},
                   "limits": {"concurrency": 2, "requests_per_minute": 9, "tokens_per_minute": 9, "timeout_s": 1.5,
                              "retries": 2, "price": {"input": 1.0, "output": 2.0}, "budget": 3.0}}},
        {"name": "seed", "kind": "import", "data": [{"path": "a", "format": "columns", "columns": {"prompt": "q"},
                                                     "take": 3, "name": "n"}], "system": "s", "passage_prompt": "p",
         "split": {"by": "ratio", "ratios": {"train": 0.5, "dev": 0.2, "test": 0.3}}, "max_bad": 0.1},
        {"name": "own", "kind": "import", "data": [
            {"path": "a", "format": "squad", "take_unanswerable": 2},
            {"hub": "a/b", "config": "c", "split": "train", "revision": "main", "streaming": True, "format": "squad"}],
         "unanswerable": "No.",
         "hygiene": {"near_duplicates": 0.8, "language": ["en"], "personal_data": ["phone"], "phone_regions": ["US"],
                     "found": "replace"},
         "split": {"by": "field", "field": "split", "names": ["train"]}},
        {"name": "rated", "kind": "import", "data": [{"path": "a", "format": "pandalm"}], "ties": "keep",
         "split": {"by": "ratio", "ratios": {"test": 1.0}}},
        {"name": "fetched", "kind": "import", "data": [{"path": "a", "format": "squad"}], "retrieve": True,
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "gen", "kind": "generate", "recipe": "self_instruct", "teacher": "teacher", "seeds": ["seed/train"],
         "take": 9, "max_requests": 30, "decontaminate": ["seed/test"], "language": "en", "batch_size": 3,
         "max_prompt_tokens": 900, "prompts": {"instructions": "a", "classification": "b", "output_first": "c",
                                               "input_first": "d"},
         "rounds": 3, "requests_per_round": 2, "patience": 2, "demonstrations": 4, "machine_demonstrations": 1,
         "last_item": 9, "stop_at_blank_line": False, "instructions": {"presence_penalty": 1.0},
         "filters": {"min_words": 2, "max_words": 9, "forbidden": ["map"], "starts": ["x"], "punctuation_first": True,
                     "ascii_first": True, "own_language": 0.5},
         "novelty": 0.7, "novelty_tokens": "rouge", "similar": 3, "classification_examples": 4,
         "classification": {"temperature": 0.0}, "instance_examples": 2, "instances": {"temperature": 0.0},
         "max_instances": 2},
        {"name": "docs", "kind": "import",
         "documents": [{"path": "a", "text": "{b}", "encoding": "utf-8", "name": "n"}],
         "chunk_words": 90, "overlap_words": 9, "min_words": 3, "take": 9, "max_file_mb": 3, "max_bad": 0.5,
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "qa", "kind": "generate", "recipe": "document_qa", "teacher": "teacher", "passages": ["docs/train"],
         "take": 9, "max_requests": 30, "decontaminate": ["seed/test"], "language": "en",
         "batch_size": 3, "max_prompt_tokens": 900, "passage_prompt": "{passage} {question}", "judgmental_share": 0.5,
         "prompts": {"judgmental_questions": "a", "open_questions": "b", "judgmental_answer": "c", "open_answer": "d",
                     "judgmental_seeds": "e", "open_seeds": "f"},
         "rounds": 3, "questions_per_round": 20, "questions_per_request": 2, "patience": 2, "demonstrations": 4,
         "machine_demonstrations": 1, "stop_at_blank_line": False, "questions": {"presence_penalty": 1.0},
         "filters": {"min_words": 2, "max_words": 9, "question_mark": True, "form": True, "own_language": 0.5,
                     "reason": True, "refusals": ["x"], "grounding": 0.5},
         "novelty": 0.7, "novelty_tokens": "rouge", "similar": 3, "answers": {"temperature": 0.0}},
        {"name": "against", "kind": "generate", "recipe": "contrastive", "teacher": "teacher", "rows": ["seed/train"],
         "take": 9, "max_requests": 30, "decontaminate": ["seed/test"], "ask": "opposite", "language": "zh",
         "prompts": {}, "score": {"function": "brevity"}, "min_score": 0.8, "min_margin": 0.1, "min_rejected": 0.2,
         "most_alike": 0.9, "retries": 2, "opposites": {"temperature": 0.8}},
        {"name": "asked-again", "kind": "generate", "recipe": "contrastive", "teacher": "teacher",
         "rows": ["seed/train"], "prompts": {"opposite": "a"}, "min_score": 5.0,
         "score": {"judge": {"model": "base", "scale": [1.0, 5.0], "language": "en"}}},
        {"name": "judged", "kind": "generate", "recipe": "judged_pairs", "model": "base", "prompts": ["seed/train"],
         "score": {"judge": {"model": "teacher", "mode": "compare", "prompt": "a", "sampling": {"temperature": 0.0},
                             "weight": 2.0}}},
        {"name": "hops", "kind": "generate", "recipe": "multihop", "teacher": "teacher", "rows": ["own/train"],
         "take": 9, "max_requests": 30, "decontaminate": ["seed/test"], "batch_size": 3, "max_prompt_tokens": 900,
         "prompts": {"categories": "a", "comparison": "b", "answer": "c", "sentence": "h", "reason": "d",
                     "thought": "e", "final": "f", "paragraph": "g"},
         "rounds": 3, "requests_per_round": 2, "patience": 2, "avoid": 3, "comparison": {"temperature": 1.0},
         "answers": {"temperature": 0.0}, "novelty": 0.7, "min_agreement": 0.1, "negatives": ["entity"],
         "negative_share": 0.5, "no_answer": "It does not say."},
        {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["seed/train"], "take": 3,
         "eval_rows": "seed/dev", "strategy": {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.0, "targets": ["q"],
                                                       "modules_to_save": ["embed_tokens"]},
         "epochs": 1.0, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-4, "max_length": 64,
         "too_long": "drop", "checkpoints": {"every": 50, "keep": 2, "final": "last"}, "log_every": 1,
         "log_to": ["wandb"], "trl": {}, "loss": "all", "packing": False},
        {"name": "rm", "kind": "train", "method": "reward", "model": "base", "rows": ["seed/train"],
         "strategy": {"kind": "full", "why": "w"}},
        {"name": "rs", "kind": "sample", "model": "sft", "previous": "base", "prompts": ["seed/train"], "take": 3,
         "n": 4,
         "sampling": {"temperature": [0.1, 0.9], "top_p": 0.9, "top_k": [1, 4], "repetition_penalty": 1.0,
                      "max_new_tokens": 8}, "first": {"temperature": 1.0},
         "score": {"model": "rm", "function": "f", "model_weight": 1.0, "function_weight": 1.0}, "pairs": "max-min",
         "min_margin": 0.0, "min_score": 0.5, "batch_size": 3, "max_prompt_tokens": 9},
        {"name": "quality", "kind": "select", "by": "quality", "rows": ["seed/train"], "score": {"model": "judge"},
         "threshold": 0.5, "batch_size": 3, "dtype": "float32"},
        {"name": "coverage", "kind": "select", "by": "coverage", "rows": ["quality/train"], "embedder": "vectors",
         "pooling": "mean", "take": 3, "normalise": True, "text": "prompt", "max_tokens": 9, "batch_size": 3,
         "dtype": "float32"},
        {"name": "necessity", "kind": "select", "by": "necessity", "rows": ["quality/train"], "answers": "rs/samples",
         "quantile": 0.25},
        {"name": "both", "kind": "select", "by": "merge", "rows": ["coverage/train", "necessity/train"]},
        {"name": "drawn", "kind": "select", "by": "random", "rows": ["seed/train"], "share": 0.5},
        {"name": "dpo", "kind": "train", "method": "dpo", "model": "base", "rows": ["rs/pairs"], "reference": "auto",
         "reference_model": "sft"},
        {"name": "kto", "kind": "train", "method": "kto", "model": "base", "rows": ["rs/pairs"], "reference": "auto"},
        {"name": "orpo", "kind": "train", "method": "orpo", "model": "base", "rows": ["rs/pairs"]},
        {"name": "distill", "kind": "train", "method": "distill", "model": "base", "rows": ["seed/train"],
         "teacher": "sft"},
        {"name": "grpo", "kind": "train", "method": "grpo", "model": "base", "rows": ["seed/train"],
         "reward": {"parts": {"f": {"function": "brevity", "weight": 0.5, "timeout": 9.0}, "rm": {"model": "rm"},
                              "mine": {"batch_function": "a.b:c"},
                              "web": {"url": "http://judge:1/", "batch_size": 3, "retries": 1, "key_env": "KEY"}}},
         "batch_size": 8, "num_generations": 4, "max_new_tokens": 9, "temperature": 0.9, "eval_rows": "seed/test",
         "gates": {"kl": 1.0, "mismatch": 0.1, "entropy": 0.1, "reward": 0.0, "length": 2.0},
         "trl": {"beta": 0.1}},
        {"name": "ppo", "kind": "train", "method": "ppo", "model": "base", "rows": ["seed/train"],
         "reward": {"parts": {"f": {"function": "brevity"}}}, "batch_size": 8, "max_new_tokens": 9,
         "num_generations": 1, "ppo_epochs": 2, "minibatches": 2, "kl_coef": 0.02, "kl_estimator": "k3",
         "cliprange": 0.1, "cliprange_value": 0.1, "vf_coef": 0.5, "value_learning_rate": 0.01, "gamma": 0.99,
         "lam": 0.9, "whiten_rewards": True, "missing_eos_penalty": 1.0},
        {"name": "eval", "kind": "evaluate", "models": ["base", "dpo"], "rows": "seed/test", "take": 4,
         "sampling": {"temperature": 0.0}, "score": {"model": "rm"}, "compare": [["dpo", "base"]],
         "answer_pattern": "(?P<answer>.*)", "language": "de", "perplexity": True,
         "metrics": ["f1", "rouge1", "bleu"], "segmentation": "jieba", "overlap": "drop", "bootstrap": 200,
         "batch_size": 4, "max_prompt_tokens": 99,
         "retrieve": {"embedder": "vectors", "pooling": "cls", "corpus": "own/train", "steps": 2, "top_k": 2,
                      "max_tokens": 99, "query_prefix": "query: ", "passage_prefix": "passage: "}},
        {"name": "judges", "kind": "evaluate", "judges": {
            "rm": {"model": "rm", "model_weight": 1.0}, "brief": {"function": "brevity"},
            "talker": {"judge": {"model": "teacher", "mode": "compare", "sampling": {"temperature": 0.0}}}},
         "rows": "seed/test", "take": 4, "overlap": "drop", "bootstrap": 200, "batch_size": 4, "dtype": "float32"},
        {"name": "bench", "kind": "evaluate", "models": ["base", "dpo"], "harness": {
            "tasks": ["boolq"], "include": "tasks", "data": {"boolq": {"validation": "a.jsonl"}}, "limit": 9,
            "num_fewshot": 0, "fewshot_seed": 1, "apply_chat_template": True, "system_instruction": "Be brief."},
         "bootstrap": 200, "batch_size": 4, "dtype": "float32"},
        {"name": "best", "kind": "choose", "models": ["base", "dpo"], "bounds": ["eval.dpo.f1 > 0.5"]},
        {"name": "out", "kind": "export", "model": "dpo", "form": ["safetensors", "adapter", "gguf", "nf4", "fp8"],
         "merge_into": "original", "weights": "bfloat16", "gguf": ["q8_0"], "shard_gb": 2.0, "base_model": "a/b",
         "rows": "seed/test", "take": 3, "max_tokens": 64, "max_kl": 0.01, "min_top1": 0.9, "evaluations": ["eval"],
         "licence": "mit", "datasets": {"seed": {"licence": "mit", "hub": "a/b"}}, "limits": "None.",
         "push_to_hub": {"repo": "a/b", "private": True, "revision": "main", "dry_run": True, "token_env": "T"}},
    ],
    "serve": {"models": {"best": "best", "score": "rm"}, "replicas": 1, "max_replicas": 4, "target": 8,
              "pooling": "mean", "unproved": True,
              "limits": {"in_flight": 9, "body": 2048, "seconds": 9.0, "tokens": 9, "longest": 99, "loaded": 2,
                         "rows": 3}},
    "groups": [{"name": "g", "rounds": [["rs", "dpo"]], "results": ["best"]}], "aims": ["eval.dpo.f1 > 0.5"],
}
POD = {"cpu": "2", "memory": "8Gi", "shm": "1Gi", "workers": 1, "scratch": "1Gi", "gpus": 0, "gpu_resource": "a/b",
       "extra_resources": {"a/b": "1"}, "node_selector": {"a": "b"},
       "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}]}
WHOLE = {
    "name": "all", "description": "d", "compute": {"workers": 1},
    "cluster": {"storage": {"url": "/artifacts/a", "claim": "c", "mount": "/artifacts", "secret": "s"},
                "images": {"train": "a:1", "control": "b:1", "pull_policy": "Never", "pull_secrets": ["x"]},
                "head": POD, "worker": POD, "stages": {"sft": {"workers": 1, "worker": POD}}, "queue": "q",
                "serve": {"worker": POD, "head": POD, "api_key": "k", "start_within": 30, "keep_old": 10},
                "env": {"A": "b"}, "env_from": ["x"], "cache_claim": "x", "spread": True, "start_within": 30,
                "run_within": 60, "keep_finished": 0},
}


def _places(tree: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*place, key)
        yield from _places(value, (*place, key))


def _holder(node: yaml.Node, place: tuple[str | int, ...]) -> tuple[list[Any], int]:
    """The list of a node that holds what stands at a place, and where in it."""
    for part in place[:-1]:
        node = child(node, part) or node
    last = place[-1]
    if isinstance(node, yaml.MappingNode):
        return node.value, [key.value for key, _ in node.value].index(last)
    return node.value, int(last)


def _findings(model: type[BaseModel], node: yaml.Node) -> list[ConfigError]:
    try:
        validated(model, node)
    except ConfigErrors as errors:
        return errors.findings
    return []


def _said(finding: ConfigError) -> str:
    return f"{finding.problem} | {finding.expected or ''}"


@pytest.mark.parametrize(("model", "tree"), [(Run, EVERYTHING), (Profile, WHOLE)], ids=["run", "profile"])
def test_every_key_with_many_wrong_values(model: type[BaseModel], tree: Any) -> None:
    node = compose(dump(tree), "f.yaml")
    assert node is not None
    assert not _findings(model, node)
    places = list(_places(tree))
    wrong = [child(compose(dump({"v": value}), "f.yaml"), "v") for value in VALUES]
    refused = 0
    for place in places:
        pairs, index = _holder(node, place)
        before = pairs[index]
        for value in wrong:
            pairs[index] = (before[0], value) if isinstance(before, tuple) else value
            for finding in _findings(model, node):
                refused += 1
                assert not PYDANTIC.search(_said(finding)), (place, value, _said(finding))
                assert re.match(r"f\.yaml:\d+ \(", finding.where or ""), (place, value, finding)
        pairs[index] = before
    assert refused > 10 * len(places)


def test_the_trees_hold_every_key() -> None:
    def keys(tree: Any) -> set[str]:
        return {str(place[-1]) for place in _places(tree)}

    known = {name for model in MODELS if model is not Group for name in model.model_fields}
    assert known <= keys(EVERYTHING) | keys(WHOLE)


@pytest.mark.parametrize(("key", "value", "problem", "expected"), [
    ("temperature", "hot", "not a value that this key takes", "a number, or a list"),
    ("temperature", '["a", 1]', "not a number", "a number"),
    ("temperature", "[1]", "an item is missing", "2"),
    ("temperature", "[1, 2, 3]", "not a value that this key takes", "at most 2"),
    ("top_k", "1.0", "not a value that this", "in digits: 1"),
    ("max_new_tokens", "0", "too small", "at least 1"),
    ("max_new_tokens", "1_000", "not a whole number", "digits: 1000"),
    ("repetition_penalty", ".inf", "not a finite number", "a finite number"),
])
def test_words_for_unions_and_bounds(key: str, value: str, problem: str, expected: str, run_text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_run(run_text.replace("score: {model: rm}", f"score: {{model: rm}}\n    sampling: {{{key}: {value}}}"))
    [finding] = caught.value.findings
    assert problem in finding.problem
    assert expected in str(finding.expected)
    assert f"(stages[4].sampling.{key}" in str(finding.where)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("{by: ratio, ratios: {train: 0.8, test: 0.2}}", "{by: field, field: s, names: 3}", "split.names): not a list"),
    ("{by: ratio, ratios: {train: 0.8, test: 0.2}}", "{by: field, field: s}", "split.names): a key is missing"),
    ("{by: ratio, ratios: {train: 0.8, test: 0.2}}", "{ratios: {train: 1}}", "by: field or ratio"),
    ("{source: tiny}", "{}", "source: hub or folder or gguf or tiny"), ("{source: tiny}", "tiny", "not a mapping"),
    ("{source: tiny}", "{source: [tiny]}", "found:    a list of 1"), ("{source: tiny}", "{source: 3}", "found:    3"),
    ("    learning_rate: 1e-4", "    packing: on", "true or false: true"),
    ("    learning_rate: 1e-4", "    loss: al", "perhaps all; one of completion, assistant, all"),
    ("name: small", "name: 007", "found:    007"), ("name: small", "name: 1.50", 'in quotes: "1.50"'),
    ("rows: [seed/train]\n    learning", "rows: seed/train\n    learning", "in brackets: [seed/train]"),
    ("name: small", "name: ~", 'found:    ~'), ("name: small", "name:", "found:    nothing"),
])
def test_what_to_write_instead(old: str, new: str, said: str, run_text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_run(run_text.replace(old, new, 1))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["true", "1", "1.50", "0x1F", "null", "1e5"])
def test_a_label_is_asked_for_in_quotes_as_it_is_written(text: str, tmp_path: Path) -> None:
    tree = PROFILE.replace("workers: 2}\n  stages", f"workers: 2, node_selector: {{gpu: {text}}}}}\n  stages")
    with pytest.raises(ConfigErrors) as caught:
        validated(Profile, parse_tree(tree, "p.yaml", "profile", "")[1])
    assert f'expected: text, so in quotes: "{text}"' in str(caught.value)
    assert validated(Profile, parse_tree(tree.replace(f"gpu: {text}", f'gpu: "{text}"'), "p.yaml", "profile", "")[1])


def test_every_pattern_and_every_kind_of_error_has_words() -> None:
    def patterns(schema: Any) -> Iterator[str]:
        for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
            if key == "pattern" and isinstance(value, str):
                yield value
            elif isinstance(value, dict | list):
                yield from patterns(value)

    found = {*patterns(Run.model_json_schema()), *patterns(Profile.model_json_schema())}
    assert len(found) > 5
    assert found <= set(FORMS)
    assert not [words for words in [*TYPES.values(), *(" ".join(pair) for pair in BOUNDS.values())]
                if PYDANTIC.search(words)]


def test_without_a_file_places_are_keys() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        Profile.model_validate_json(json.dumps({**WHOLE, "compute": {"workers": "x"}}))
    [one] = told(caught.value, Profile)
    assert (one.where, one.problem, one.found) == ("compute.workers", "not a whole number", "x")
