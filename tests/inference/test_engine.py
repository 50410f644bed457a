"""The engine against transformers' own generate, and the sampler against sums done the slow way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alignment.errors import DataError, ModelError
from alignment.inference.engine import Engine
from alignment.inference.loading import load_tokenizer
from alignment.inference.next_token import CANDIDATES, RowParameters, check_finite, penalized, present, sample
from alignment.inference.requests import Draw, Request, batches
from alignment.templates import encode_prompt

GREEDY = Draw(temperature=0.0, max_new_tokens=12)
TEXTS = ["Hi", "What colour is the boat by the gate?", "A lamp.", "Which of the nets hangs lowest over the water?"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_model_dir, side="left")


def model_of(folder: Path, kind: Any = LlamaForCausalLM, **changes: Any) -> Any:
    """A random model with shared key heads and weights large enough that its choices are not near ties."""
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder)
    if kind is MistralForCausalLM:
        known = config.to_dict()
        config = MistralConfig(**{key: known[key] for key in known if key not in ("model_type", "architectures")})
    config.update({"num_key_value_heads": 2, "initializer_range": 0.3, **changes})
    return kind(config).eval()


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase) -> Engine:
    return Engine(model_of(tiny_model_dir), tokenizer)


def request(text: str, *draws: Draw) -> Request:
    return Request(text, [{"role": "user", "content": text}], draws or (GREEDY,))


def expected(engine: Engine, text: str, draw: Draw = GREEDY) -> list[int]:
    """What transformers says greedily to one prompt alone, without the stop token."""
    ids = torch.tensor([encode_prompt(engine.tokenizer, [{"role": "user", "content": text}])])
    out = engine.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=draw.max_new_tokens,
        repetition_penalty=draw.repetition_penalty, eos_token_id=sorted(engine.stops),
        pad_token_id=engine.tokenizer.pad_token_id,
    )
    new = out[0, ids.shape[1]:].tolist()
    return new[:-1] if new[-1] in engine.stops else new


def test_greedy_equals_transformers_alone_and_in_a_mixed_batch(engine: Engine) -> None:
    wanted = [expected(engine, text) for text in TEXTS]
    assert len({tuple(ids) for ids in wanted}) > 1
    assert [engine.generate([request(text)])[0][0].ids for text in TEXTS] == wanted
    assert [own[0].ids for own in engine.generate([request(text) for text in TEXTS])] == wanted
    assert engine.model.config._attn_implementation == "sdpa"  # given back as it was


def test_greedy_with_penalty_equals_transformers_in_a_padded_batch(engine: Engine) -> None:
    draw = replace(GREEDY, repetition_penalty=1.7)
    wanted = [expected(engine, text, draw) for text in TEXTS]
    assert wanted != [expected(engine, text) for text in TEXTS]
    assert [own[0].ids for own in engine.generate([request(text, draw) for text in TEXTS])] == wanted


def test_sliding_windows_keep_transformers_own_layers(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Engine(model_of(tiny_model_dir, MistralForCausalLM, sliding_window=16), tokenizer)
    wanted = [expected(engine, text) for text in TEXTS]
    plain = Engine(model_of(tiny_model_dir, MistralForCausalLM, sliding_window=None), tokenizer)
    assert wanted != [expected(plain, text) for text in TEXTS]  # the window matters at these lengths
    assert [own[0].ids for own in engine.generate([request(text) for text in TEXTS])] == wanted


def test_samples_do_not_depend_on_the_batch(engine: Engine) -> None:
    draws = tuple(
        Draw(temperature=t, top_p=p, top_k=k, repetition_penalty=r, max_new_tokens=n, seed=s)
        for s, (t, p, k, r, n) in enumerate([(0.7, 0.9, 0, 1.0, 10), (1.3, 1.0, 5, 1.2, 17), (0.0, 1.0, 0, 1.0, 3)])
    )
    together = engine.generate([request(text, *draws) for text in TEXTS])
    alone = [[engine.generate([request(text, draw)])[0][0] for draw in draws] for text in TEXTS]
    assert together == alone
    assert together == engine.generate([request(text, *draws) for text in TEXTS])
    other = engine.generate([request(text, *(replace(draw, seed=draw.seed + 9) for draw in draws)) for text in TEXTS])
    assert all(a[2] == b[2] for a, b in zip(together, other, strict=True))  # greedy: the seed is not used
    assert all(a[:2] != b[:2] for a, b in zip(together, other, strict=True))
    assert [len(own[2].ids) for own in together] == [3] * 4 or any(own[2].finished for own in together)


def test_rows_end_at_stop_tokens_and_leave_the_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = tuple(Draw(temperature=1.5, max_new_tokens=40, seed=seed) for seed in range(4))
    sizes: list[int] = []
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ended: list[int] = []
    try:
        whole = list(chain.from_iterable(engine.generate([request(text, *draws) for text in TEXTS])))
        assert sizes[:2] == [4, 16]  # one prefill of four prompts, then their sixteen answers
        common = Counter(token for said in whole for token in said.ids)
        stops = engine.stops | {token for token, _ in common.most_common(12)}
        monkeypatch.setattr(engine, "stops", stops)
        sizes.clear()
        cut = list(chain.from_iterable(engine.generate([request(text, *draws) for text in TEXTS], ended.append)))
    finally:
        hook.remove()
    for before, after in zip(whole, cut, strict=True):
        place = next((i for i, token in enumerate(before.ids) if token in stops), None)
        if place is None:
            assert after == before
        else:
            assert after.finished
            assert after.ids == before.ids[:place]
    assert sum(ended) == 16
    # Ended rows never fill more than a quarter of the batch, and nothing runs once all have ended.
    steps = [len(said.ids) + said.finished for said in cut]
    assert len(sizes) == max(steps)
    assert all(size * 0.75 < sum(taken > step for taken in steps) <= size for step, size in enumerate(sizes[1:], 1))


def test_answers_cut_by_max_new_tokens_are_not_finished(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "stops", frozenset())
    (said,), (more,) = engine.generate([request("Hi", replace(GREEDY, max_new_tokens=1)), request("Ho", GREEDY)])
    assert (len(said.ids), said.finished, len(more.ids), more.finished) == (1, False, 12, False)


def test_refuses_requests_without_draws_and_broken_weights(
    engine: Engine, tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match="draw") as error:
        engine.generate([Request("r7", [{"role": "user", "content": "Hi"}], ())])
    assert error.value.where == "row r7"
    broken = model_of(tiny_model_dir)
    broken.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Engine(broken, tokenizer).generate([request("Hi")])
    assert engine.generate([]) == []


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [float("inf"), 1.0], [-float("inf")] * 2])
def test_logits_that_are_not_finite_are_seen_by_their_greatest_as_by_their_sum(values: list[float]) -> None:
    scores = torch.tensor([[0.0, -float("inf")], values])
    for norm in (scores.amax(-1), scores.logsumexp(-1)):
        check_finite(norm[:1])
        with pytest.raises(ModelError, match="not finite"):
            check_finite(norm)


def test_batches_hold_every_request_once_longest_first_in_any_input_order() -> None:
    requests = [Request(f"r{i}", [{"role": "user", "content": "x" * (i * 7 % 11)}], (GREEDY,)) for i in range(23)]
    made = batches(requests, 5)
    assert [len(batch) for batch in made] == [5, 5, 5, 5, 3]
    assert batches(requests[::-1], 5) == made
    lengths = [len(r.prompt[0]["content"]) for batch in made for r in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert {r.id for batch in made for r in batch} == {r.id for r in requests}


# --- the sampler alone ---------------------------------------------------------------------------------------


def parameters(count: int, vocabulary: int, **draw: Any) -> RowParameters:
    draws = [Draw(seed=seed, max_new_tokens=1, **draw) for seed in range(count)]
    return RowParameters.of(draws, torch.device("cpu"), vocabulary)


def filtered(scores: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """transformers' distribution over [1, vocabulary] scores, in float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature != 1 else [])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), scores).double().softmax(-1)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6), spread=st.sampled_from([0.05, 1.0, 4.0]), vocabulary=st.sampled_from([40, 3000]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]), top_k=st.sampled_from([0, 1, 7, 300, 5000]),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
)
def test_equals_the_inverse_cdf_of_transformers_distribution(
    seed: int, spread: float, vocabulary: int, temperature: float, top_k: int, top_p: float
) -> None:
    """Flat distributions over 3000 tokens need the full sort; peaked ones are settled by the candidates."""
    scores = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    rows = RowParameters.of([Draw(temperature, top_p, top_k, 1.0, 1, seed)], torch.device("cpu"), vocabulary)
    token = int(sample(scores, torch.zeros(1, 1, dtype=torch.long), rows, 0))
    mass, order = filtered(scores, temperature, top_k, top_p)[0].sort(descending=True, stable=True)
    reached = mass.cumsum(0)
    place = int((order == token).nonzero())
    uniform = float(rows.uniforms[0, 0])
    assert mass[place] > 0
    assert (reached[place - 1] if place else 0) - 1e-4 <= uniform <= reached[place] + 1e-4


def test_frequencies_follow_each_rows_own_temperature() -> None:
    count, scores = 4000, torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0, 3.0):
        cold = Draw(temperature=0.0, max_new_tokens=1)
        draws = [d for s in range(count) for d in (Draw(temperature=temperature, max_new_tokens=1, seed=s), cold)]
        rows = RowParameters.of(draws, torch.device("cpu"), 4)
        tokens = sample(scores.repeat(2 * count, 1), torch.zeros(2 * count, 1, dtype=torch.long), rows, 0)
        assert set(tokens[1::2].tolist()) == {0}
        shares = torch.bincount(tokens[::2], minlength=4) / count
        assert torch.allclose(shares, (scores / temperature).softmax(0), atol=4 * 0.5 / count**0.5)


def test_a_row_where_the_candidates_do_not_suffice_can_draw_any_token() -> None:
    vocabulary = CANDIDATES * 20
    tokens = sample(torch.zeros(500, vocabulary), torch.zeros(500, 1, dtype=torch.long), parameters(500, vocabulary), 0)
    assert len(set(tokens.tolist())) > 400


def test_penalty_equals_transformers_processor() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(6, 50, generator=generator)
    history = torch.randint(0, 50, (6, 9), generator=generator)
    penalty = torch.tensor([1.0, 1.1, 1.5, 2.0, 0.7, 1.3])
    got = penalized(scores, history, penalty)
    for row, value in enumerate(penalty.tolist()):
        wanted = RepetitionPenaltyLogitsProcessor(value)(history[row : row + 1], scores[row : row + 1].clone())
        assert torch.equal(got[row : row + 1], wanted)


def test_a_presence_penalty_lowers_what_the_answer_holds_once_each_and_nothing_of_the_prompt(engine: Engine) -> None:
    scores = torch.randn(2, 7, generator=torch.Generator().manual_seed(4))
    answers, presence = torch.tensor([[1, 1, 3], [0, 6, 6]]), torch.tensor([0.5, 0.0])
    lowered = present(scores, answers, presence)
    wanted = scores.clone()
    wanted[0, 1] -= 0.5
    wanted[0, 3] -= 0.5
    assert torch.equal(lowered, wanted)
    text = TEXTS[1]
    plain = engine.generate([request(text)])[0][0].ids
    strong = replace(GREEDY, presence_penalty=1e4)
    ids = engine.generate([request(text, strong)])[0][0].ids
    assert len(set(plain)) < len(plain), "without it the model repeats itself"
    assert len(set(ids)) == len(ids)
    assert ids[0] == plain[0], "the prompt does not count"
    mixed = engine.generate([request(text), request(text, strong), request(TEXTS[0])])
    assert [mixed[0][0].ids, mixed[1][0].ids] == [plain, ids]
    with pytest.raises(DataError, match="no stop texts"):
        engine.generate([request(text, replace(GREEDY, stop=("\n",)))])


def test_tokens_are_told_as_they_come_and_change_nothing_in_what_is_drawn(engine: Engine) -> None:
    draws = tuple(Draw(temperature=1.2, max_new_tokens=length, seed=seed) for seed, length in enumerate((9, 3, 9, 5)))
    requests = [request(text, *draws) for text in TEXTS]
    told: dict[int, list[int]] = {}
    streamed = engine.generate(requests, on_token=lambda number, token: told.setdefault(number, []).append(token))
    assert streamed == engine.generate(requests)
    assert [told.get(number, []) for number in range(len(TEXTS) * len(draws))] == [
        one.ids for own in streamed for one in own]


def test_what_hears_of_tokens_may_end_the_answer(engine: Engine) -> None:
    class Enough(Exception):
        pass

    def told(number: int, token: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        engine.generate([request(TEXTS[0])], on_token=told)
    assert engine.generate([request(TEXTS[0])])[0][0].ids == expected(engine, TEXTS[0])
