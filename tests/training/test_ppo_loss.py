"""PPO's functions against tensors computed by hand and against TRL 1.12.0, whose numbers lie in ppo_trl_1_12.json.

ppo_oracle.py made that file: it runs the lines of `trl.experimental.ppo.PPOTrainer.train` (trl 1.12.0 from PyPI, the
last with PPO) over random rollouts of 6, 3, 1 and 4 tokens, and keeps what they give.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.training import ppo_loss as ppo

ORACLE = json.loads((Path(__file__).parent / "ppo_trl_1_12.json").read_text(encoding="utf-8"))


def tensor(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def ones(lengths: list[int], width: int) -> torch.Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).float()


def near(found: torch.Tensor, wanted: Any, **close: float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), atol=1e-6, rtol=1e-5, **close)


# --- by hand -------------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_at_the_temperature_of_sampling() -> None:
    logits = tensor([[0.0, math.log(3.0)]])
    near(ppo.token_log_probs(logits, torch.tensor([[1]]), 1.0), [[math.log(0.75)]])
    near(ppo.token_log_probs(logits, torch.tensor([[0]]), 0.5), [[math.log(0.1)]])


def test_entropy_of_an_even_choice_is_the_logarithm_of_its_number_and_falls_with_the_temperature() -> None:
    near(ppo.entropy(tensor([[2.0, 2.0, 2.0, 2.0]]), 0.7), [[math.log(4)]])
    logits = tensor([[0.0, math.log(3.0)]])
    near(ppo.entropy(logits, 1.0), [[-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]])
    assert float(ppo.entropy(logits, 0.5)) < float(ppo.entropy(logits, 1.0))


def test_an_answer_without_an_end_loses_the_penalty() -> None:
    near(ppo.answer_scores(tensor(1.0, 2.0)[0:2].flatten(), torch.tensor([True, False]), 0.5), [1.0, 1.5])


def test_the_kl_of_each_token_by_both_estimators() -> None:
    own, reference, mask = tensor([-1.0, -2.0, 9.0]), tensor([-1.5, -1.0, -9.0]), ones([2], 3)
    near(ppo.kl_terms(own, reference, mask, "k1"), [[0.5, -1.0, 0.0]])
    near(ppo.kl_terms(own, reference, mask, "k3"), [[math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1, 0.0]])
    near(ppo.kl_terms(own, own, mask, "k1"), [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_have_the_kl_as_their_mean(estimator: Any) -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    terms = ppo.kl_terms(p.log()[None], q.log()[None], torch.ones(1, 3), estimator)
    near((p * terms[0]).sum(), float((p * (p / q).log()).sum()))


def test_the_score_is_paid_at_the_last_token_and_the_kl_at_each() -> None:
    kl = tensor([0.5, -1.0, 0.0], [1.0, 1.0, 1.0])
    found = ppo.token_rewards(torch.tensor([2.0, 3.0]), kl, ones([2, 3], 3), 0.1)
    near(found, [[-0.05, 2.1, 0.0], [-0.1, -0.1, 2.9]])


def test_advantages_and_returns_by_hand() -> None:
    # d = [0 + .5*2 - 1, 1 + .5*3 - 2, 4 - 3] = [0, .5, 1]; A_2 = 1, A_1 = .5 + .4, A_0 = .4 * .9
    advantages, returns = ppo.gae(tensor([0.0, 1.0, 4.0]), tensor([1.0, 2.0, 3.0]), ones([3], 3), 0.5, 0.8)
    near(advantages, [[0.36, 0.9, 1.0]])
    near(returns, [[1.36, 2.9, 4.0]])


def test_with_lambda_1_an_advantage_is_what_is_still_to_come_less_the_value() -> None:
    rewards, values = tensor([1.0, 2.0, 3.0, 7.0]), tensor([0.3, 0.2, 0.1, 7.0])
    advantages, returns = ppo.gae(rewards, values, ones([3], 4), 1.0, 1.0)
    near(returns, [[6.0, 5.0, 3.0, 0.0]])
    near(advantages, [[5.7, 4.8, 2.9, 0.0]])


def test_whitening_by_hand() -> None:
    near(ppo.whiten(tensor([1.0, 3.0, 99.0]), ones([2], 3)), [[-1 / math.sqrt(2), 1 / math.sqrt(2), 0.0]])
    near(ppo.whiten(tensor([1.0, 3.0]), ones([2], 2), shift_mean=False),
         [[2 - 1 / math.sqrt(2), 2 + 1 / math.sqrt(2)]])
    near(ppo.whiten(tensor([5.0]), ones([1], 1)), [[0.0]])


def test_workers_whiten_as_one() -> None:
    values, mask = torch.randn(4, 5), ones([5, 2, 3, 1], 5)
    wanted = ppo.whiten(values, mask)
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    count = torch.stack([torch.stack([(v * m).sum(), m.sum()]) for v, m in halves]).sum(0)
    squares = torch.stack([((v - count[0] / count[1]) ** 2 * m).sum() for v, m in halves]).sum(0)
    for index, (part, own) in enumerate(halves):
        sums = iter([count, squares])
        near(ppo.whiten(part, own, over_all=lambda _, sums=sums: next(sums)), wanted[2 * index:2 * index + 2])


@pytest.mark.parametrize(("ratio", "advantage", "loss", "clipped"), [
    (1.0, 2.0, -2.0, 0), (1.5, 2.0, -2.4, 1), (0.5, 2.0, -1.0, 0), (1.5, -2.0, 3.0, 0), (0.5, -2.0, 1.6, 1),
])
def test_the_surrogate_is_clipped_where_that_is_the_worse_side(
    ratio: float, advantage: float, loss: float, clipped: int
) -> None:
    made = ppo.policy_loss(tensor([math.log(ratio)]), tensor([0.0]), tensor([advantage]), ones([1], 1), 0.2)
    near(made.loss, [[loss]])
    near(made.clipped, [[clipped]])


@pytest.mark.parametrize(("value", "old", "wanted", "loss", "clipped"), [
    (0.1, 0.0, 1.0, 0.5 * 0.81, 0), (0.9, 0.0, 1.0, 0.5 * 0.64, 1), (-0.9, 0.0, 1.0, 0.5 * 3.61, 0),
])
def test_a_value_that_leaps_is_judged_by_where_it_may_go(
    value: float, old: float, wanted: float, loss: float, clipped: int
) -> None:
    made = ppo.value_loss(tensor([value]), tensor([old]), tensor([wanted]), ones([1], 1), 0.2)
    near(made.loss, [[loss]])
    near(made.clipped, [[clipped]])


def test_a_clipped_token_has_no_gradient() -> None:
    own = tensor([math.log(1.5), math.log(1.1)]).requires_grad_()
    ppo.policy_loss(own, tensor([0.0, 0.0]), tensor([1.0, 1.0]), ones([2], 2), 0.2).loss.sum().backward()
    assert own.grad is not None
    near(own.grad, [[0.0, -1.1]])


def test_the_change_of_a_policy_is_half_its_mean_square() -> None:
    near(ppo.approx_kl(tensor([1.0, 3.0, 50.0]), tensor([0.0, 1.0, 0.0]), ones([2], 3)), 1.25)


# --- padding -------------------------------------------------------------------------------------------------


def whole(lengths: list[int], width: int, rows: list[int], filled: float) -> dict[str, torch.Tensor]:
    """Everything from log-probabilities to losses, of some rows of one random batch, `filled` where they have none."""
    random = torch.Generator().manual_seed(2)
    own, reference, values, new, later = (torch.randn(len(lengths), width, generator=random) for _ in range(5))
    scores = torch.randn(len(lengths), generator=random)
    mask = ones(lengths, width)
    own, reference, values, new, later = (
        t.masked_fill(mask == 0, filled)[rows] for t in (own, reference, values, new, later))
    kept = max(lengths[row] for row in rows)
    own, reference, values, new, later, mask = (
        t[:, :kept] for t in (own, reference, values, new, later, mask[rows]))
    kl = ppo.kl_terms(own, reference, mask, "k3")
    advantages, returns = ppo.gae(ppo.token_rewards(scores[rows], kl, mask, 0.1), values, mask, 0.9, 0.8)
    return {"kl": kl, "advantages": advantages, "returns": returns,
            "policy": ppo.policy_loss(later, own, advantages, mask, 0.2).loss,
            "value": ppo.value_loss(new, values, returns, mask, 0.2).loss}


def test_a_batch_of_different_lengths_equals_its_rows_one_by_one() -> None:
    lengths = [4, 1, 7, 2]
    together = whole(lengths, 7, [0, 1, 2, 3], 1e6)
    for row, length in enumerate(lengths):
        alone = whole(lengths, 7, [row], 0.0)
        for name, tensors in together.items():
            near(tensors[row, :length], alone[name][0, :length])
            assert not tensors[row, length:].any(), f"{name} is 0 where the answer has ended"


def test_padding_does_not_reach_whitened_advantages() -> None:
    values, mask = torch.randn(3, 4), ones([4, 2, 1], 4)
    wide = torch.cat([values, torch.full((3, 3), 1e6)], 1)
    near(ppo.whiten(wide, ones([4, 2, 1], 7))[:, :4], ppo.whiten(values, mask))


# --- TRL 1.12.0 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORACLE["cases"])
def test_the_numbers_are_those_of_trls_last_ppo(case: str) -> None:
    found, given = ORACLE["cases"][case], {k: torch.tensor(v) for k, v in ORACLE["rollouts"].items()}
    args, lengths, width = found["arguments"], ORACLE["lengths"], given["values"].shape[1]
    mask = ones(lengths, width)
    longer = ones([min(length + 1, width) for length in lengths], width)  # TRL's step after the stop token
    kl = ppo.kl_terms(given["logprobs"], given["ref_logprobs"], mask, args["kl_estimator"])
    near(kl, found["kl"])
    rewards = ppo.token_rewards(given["scores"], kl, longer, args["kl_coef"])
    if args["whiten_rewards"]:
        rewards = ppo.whiten(rewards, longer, shift_mean=False)
    near(rewards, found["rewards"])
    advantages, returns = ppo.gae(rewards, given["values"], longer, args["gamma"], args["lam"])
    near(returns, found["returns"])
    advantages = ppo.whiten(advantages, mask)
    near(advantages, found["advantages"])
    # TRL adds 1e-7 to the temperature.
    new = ppo.token_log_probs(given["logits"], given["responses"], args["temperature"])
    near(new * mask, torch.tensor(found["new_logprobs"]) * mask)
    policy = ppo.policy_loss(new, given["logprobs"], advantages, mask, args["cliprange"])
    value = ppo.value_loss(given["new_values"] * longer, given["values"] * longer, returns, longer,
                           args["cliprange_value"])
    near(ppo.masked_mean(policy.loss, mask), found["pg_loss"])
    near(ppo.masked_mean(value.loss, longer), found["vf_loss"])
    near(ppo.masked_mean(policy.loss, mask) + args["vf_coef"] * ppo.masked_mean(value.loss, longer), found["loss"])
    near(ppo.masked_mean(policy.clipped, mask), found["pg_clipfrac"])
    near(ppo.masked_mean(value.clipped, longer), found["vf_clipfrac"])
    near(ppo.entropy(given["logits"], args["temperature"]), found["entropy"])
    # TRL's mean counts padding.
    near(ppo.approx_kl(new, given["logprobs"], mask) * mask.sum() / mask.numel(), found["approxkl"])
