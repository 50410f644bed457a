"""Trainers that compare a prompt's answers with each other: the prompt goes through the model once for several of them.

TRL asks for log-probabilities in one place, of the reference, of the policy when it answered and of the policy that
learns; there the answers of a forward pass are laid out anew, and the output head is asked at answers alone. (On a CPU
TRL asks it at every token of the prompt too.) Whether it may be done, and that it gives the same, is settled as for
pairs: shared_prefix.py. Does not draw answers and knows no losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignment.training.layout import NAMES, Ids, Layout, lay_out
from alignment.training.shared_prefix import OneSequence

LONGEST = 2
"""Answers of one row are together at most so many times as long as their prompt: beyond that attention over tokens
that do not see each other costs more than the shared prompt saves."""


class AsDrawn:
    """In place of a collator: batches are TRL's, and are laid out where they are read."""

    on = False

    def __init__(self, pad: int) -> None:
        self.collator, self.pad_token_id = self, pad


class Asked(NamedTuple):
    """A forward pass of R rows as it is made: tokens that answers begin after, and answers, [R, 1 + W]; their mask; and
    where all tokens stand."""

    ids: Tensor
    mask: Tensor
    layout: Layout


class OnePrompt(OneSequence):
    """Mixin before a TRL trainer of groups, after ours, whose reference has to be there when the layout is settled."""

    fact = "shared_prefix"
    max_new_tokens: int
    processing_class: Any
    as_drawn: AsDrawn | None = None

    def laid(self, row: dict[str, Any], pad: int) -> tuple[list[Ids], list[int]]:
        """Two answers to a prompt, as long as they get: made up, since none is drawn when layouts are compared."""
        prompt = row["prompt"]
        answers = ([*islice(cycle(words), self.max_new_tokens)] for words in (prompt, prompt[::-1]))
        return [prompt + answer for answer in answers], [len(prompt) - 1] * 2

    def settle_layout(self, stage: str | None = None) -> None:
        """As OneSequence's."""
        for backbone in self._backbones():
            backbone.register_forward_pre_hook(self._before, with_kwargs=True)
            backbone.register_forward_hook(self._after)
        super().settle_layout(stage)

    def _collates(self) -> Any:
        """Nothing of a batch; what is said of its layout."""
        self.as_drawn = self.as_drawn or AsDrawn(self.processing_class.pad_token_id)
        return self.as_drawn

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, batch_size: int | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Log-probabilities and, where they are asked for, entropies of the last tokens, [R, logits_to_keep]; 0 where
        an answer has ended, as TRL gives them."""
        of_trl = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        if self.why_not is not None:
            whole: tuple[Tensor, Tensor | None, Any] = of_trl(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **more)
            return whole
        size, made = batch_size or len(input_ids), []
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            asked = asked_of(input_ids[rows], attention_mask[rows], logits_to_keep, self._collates().pad_token_id)
            self.layout = asked.layout
            try:
                made.append(of_trl(model, asked.ids, asked.mask, asked.ids.shape[1] - 1, **more)[:2])
            finally:
                self.layout = None
        log_probs, entropies = ([_wide(one, logits_to_keep) for one in part if one is not None]
                                for part in zip(*made, strict=True))
        return torch.cat(log_probs), torch.cat(entropies) if entropies else None, None


def asked_of(ids: Tensor, mask: Tensor, answers: int, pad: int) -> Asked:
    """A forward pass over rows of TRL's layout, prompts padded at the left and answers at the right.

    Args:
        ids: [R, P + T] token ids.
        mask: [R, P + T], 1 where a row has a token.
        answers: T.
        pad: token id of padding.
    """
    kept = mask.bool()
    prompts = [row[own].tolist() for row, own in zip(ids[:, :-answers], kept[:, :-answers], strict=True)]
    said = [row[own].tolist() for row, own in zip(ids[:, -answers:], kept[:, -answers:], strict=True)]
    groups, order = grouped(prompts, said)
    sequences = [[prompts[row] + said[row] for row in group] for group in groups]
    begins = [[len(prompts[row]) - 1 for row in group] for group in groups]
    made, width = lay_out(sequences, begins, pad, order=order), 1 + max(map(len, said))
    layout = Layout(*(getattr(made, name).to(ids.device) for name in NAMES))
    cut = slice(ids.shape[1] - answers - 1, ids.shape[1] - answers - 1 + width)
    return Asked(ids[:, cut], mask[:, cut], layout)


def grouped(prompts: Sequence[Ids], answers: Sequence[Ids]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows that share a prompt, by their numbers, in groups whose answers are not too long together; and of each row
    its group and its place in it."""
    groups: list[list[int]] = []
    order: list[tuple[int, int]] = []
    last: dict[tuple[int, ...], int] = {}
    used: list[int] = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        group = last.get(tuple(prompt))
        if group is None or used[group] + len(answer) > LONGEST * len(prompt):
            group = last[tuple(prompt)] = len(groups)
            groups.append([])
            used.append(0)
        order.append((group, len(groups[group])))
        groups[group].append(row)
        used[group] += len(answer)
    return groups, order


def _wide(values: Tensor, width: int) -> Tensor:
    """[R, W] -> [R, width], 0 beyond what there is."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
