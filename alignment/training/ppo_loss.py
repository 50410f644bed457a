"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) as pure functions of tensors.

What is rewarded: `answer_scores`, `kl_terms`, `token_rewards`. What follows: `gae`, `whiten`. What is minimised:
`policy_loss` and `value_loss`, per token; `masked_mean` makes one number of them. What is watched: `entropy`,
`approx_kl`. Held to TRL 1.12.0's PPO, the last one that it had (tests/training/test_ppo_loss.py).

Shapes: B answers, T tokens of the longest (its stop token included), V vocabulary. A mask is [B, T], 1 where an answer
has a token; what stands where it is 0 reaches no result. Runs no model, knows no rows and no workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k3"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of all answers: [B, T], [B, T] -> []."""
    return (values * mask).sum() / mask.sum()


def token_log_probs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token under what was drawn from: [B, T, V], [B, T] -> [B, T], in float32.

    Args:
        temperature: that answers were drawn at; the policy that PPO improves is the one that acts.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens[..., None]).squeeze(-1) - scaled.logsumexp(-1)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Of the next token's distribution, in nats: [B, T, V] -> [B, T]."""
    scaled = logits.float() / temperature
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * scaled).sum(-1)


def answer_scores(rewards: Tensor, finished: Tensor, missing_eos_penalty: float) -> Tensor:
    """The rewards, less the penalty where max_new_tokens cut the answer: [B], [B] (bool) -> [B]."""
    return rewards - missing_eos_penalty * (~finished).to(rewards.dtype)


def kl_terms(log_probs: Tensor, reference: Tensor, mask: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate of KL(policy, reference) at each sampled token, in nats: [B, T] three times -> [B, T], 0 at padding.

    With r = reference - policy, k1 is -r: unbiased, may be negative, TRL's default. k3 is exp(r) - 1 - r: unbiased,
    never negative, of less variance near r = 0 (Schulman 2020, joschu.net/blog/kl-approx.html).
    """
    apart = (reference - log_probs).masked_fill(mask == 0, 0.0)
    return -apart if estimator == "k1" else apart.exp() - 1 - apart


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """What each token earns: -kl_coef times its KL, and the answer's score at its last token.

    [B], [B, T], [B, T] -> [B, T], 0 at padding. (TRL 1.12 pays the score one step after the stop token, where there is
    no action left to take; with its mask, one token longer, this gives its numbers.)
    """
    rewards = -kl_coef * kl * mask
    last = mask.sum(-1).long() - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438), and the returns to learn values from.

    [B, T] three times -> advantages and returns, both [B, T], 0 at padding. With d_t = r_t + gamma V_{t+1} - V_t, an
    advantage is the sum of (gamma lam)^k d_{t+k}; an answer's end has value 0. A return is the advantage plus V_t.
    """
    mask = mask.to(values.dtype)
    rewards, values = rewards * mask, values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    deltas = rewards + gamma * following - values
    advantages, ahead = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        ahead = deltas[:, t] + gamma * lam * ahead
        advantages[:, t] = ahead
    return advantages * mask, (advantages + values) * mask


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, over_all: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """Scaled to variance 1 (unbiased) over all tokens, and shifted to mean 0: [B, T], [B, T] -> [B, T], 0 at padding.

    Args:
        shift_mean: False leaves the mean where it is, as rewards have it.
        over_all: sums a tensor over all workers, so that they whiten as one.
    """
    mask = mask.to(values.dtype)
    total, count = over_all(torch.stack([(values * mask).sum(), mask.sum()]))
    mean = total / count
    squares = over_all((((values - mean) ** 2) * mask).sum())
    scaled: Tensor = (values - mean) * torch.rsqrt(squares / (count - 1).clamp(min=1) + 1e-8)
    return (scaled if shift_mean else scaled + mean) * mask


class Clipped(NamedTuple):
    """A loss per token and where its clipped side is the greater one, both [B, T] (the latter 0 or 1)."""

    loss: Tensor
    clipped: Tensor


def policy_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Clipped:
    """-min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A), ratio being exp(log_probs - old): all [B, T]."""
    ratio = (log_probs - old).masked_fill(mask == 0, 0.0).exp()
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return Clipped(torch.max(plain, bounded) * mask, (bounded > plain) * mask)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, cliprange: float) -> Clipped:
    """Half the greater squared error of the value and of the value held within cliprange of the old one: all [B, T]."""
    values = values.masked_fill(mask == 0, 0.0)
    plain = (values - returns) ** 2
    bounded = (torch.clamp(values, old - cliprange, old + cliprange) - returns) ** 2
    return Clipped(0.5 * torch.max(plain, bounded) * mask, (bounded > plain) * mask)


def approx_kl(log_probs: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """How far an update has moved the policy: half the mean squared change of log-probabilities (k2), [B, T] -> []."""
    return 0.5 * masked_mean((log_probs - old).masked_fill(mask == 0, 0.0) ** 2, mask)
