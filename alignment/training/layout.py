"""Several token sequences in one: those of a group share what they begin with, and no other token sees another's.

A group is the sequences of one row: both sides of a pair, `[prompt | chosen | rejected]`, several answers to a prompt,
or a single one. Each token sees its own sequence alone, through the mask, and has the place in it that it would have by
itself. Groups stand side by side in rows as long as the longest of them, so several short ones cost what one long one
does. After the backbone the hidden states go back to where a trainer looks for them. Pure tensors; knows no trainer and
no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

Ids = list[int]
Laid = Callable[[dict[str, Any], int], tuple[list[Ids], list[int]]]
"""A row's columns, id of padding -> its sequences, and the first position of each that the trainer reads."""
PREFIX = "laid_"
"""Begins the names under which a layout travels with its batch."""
BRANCHES = 4096
"""Numbers of segments that a group has; sequences of a group are fewer."""
NAMES = ("ids", "positions", "segments", "place")
FILLED = {"labels": -100, "completion_mask": 0}
"""What a trainer's tensors beside input_ids, of the same shape, have where a row has ended."""


@dataclass(frozen=True)
class Layout:
    """Where each token stands. N rows of L tokens; R sequences, of which at most W positions are read.

    Attributes:
        ids: [N, L] token ids.
        positions: [N, L] place of each token in its own sequence, from 0.
        segments: [N, L] BRANCHES times the group's number, and 0 for what the group shares, 1 or more for what one
            sequence has alone; padding is a group of its own.
        place: [R, W] index into the N * L tokens, of each position that is read; 0 where a sequence has ended.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    place: Tensor

    @cached_property
    def seen(self) -> Tensor:
        """[N, 1, L, L] bool: whether a token (third) sees another (fourth)."""
        group, side = self.segments // BRANCHES, self.segments % BRANCHES
        earlier = self.positions[:, None, :] <= self.positions[:, :, None]
        own = (side[:, None, :] == 0) | (side[:, None, :] == side[:, :, None])
        return (earlier & own & (group[:, None, :] == group[:, :, None]))[:, None]

    def within(self, window: int) -> Tensor:
        """`seen`, for layers that look back less than `window` tokens."""
        return self.seen & (self.positions[:, None, :] > self.positions[:, :, None] - window)[:, None]

    def read(self, states: Tensor) -> Tensor:
        """Hidden states [N, L, H] -> those of the positions that are read [R, W, H]."""
        picked = states.reshape(-1, states.shape[-1]).index_select(0, self.place.flatten())
        return picked.view(*self.place.shape, -1)


def shared(group: Sequence[Ids]) -> int:
    """How many tokens all sequences of a group begin with alike."""
    if len(group) == 1:
        return len(group[0])
    return sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, zip(*group, strict=False)))


def lay_out(
    groups: Sequence[Sequence[Ids]], begins: Sequence[Sequence[int]], pad: int, room: int | None = None,
    order: Sequence[tuple[int, int]] | None = None,
) -> Layout:
    """Put groups into rows, first fit, longest first.

    Args:
        groups: [B][S] sequences of token ids; S is less than BRANCHES, and the same for all unless there is an order.
        begins: [B][S] the first position of each sequence that is read.
        pad: token id of padding.
        room: tokens of a row; those of the longest group, if None.
        order: [R] group and number in it of each sequence that is read; if None, TRL's of pairs: all first ones, then
            all second ones.
    """
    commons = [shared(group) for group in groups]
    sizes = [common + sum(len(ids) - common for ids in group)
             for common, group in zip(commons, groups, strict=True)]
    room, used, row_of = room or max(sizes), list[int](), [0] * len(groups)
    for index in sorted(range(len(groups)), key=lambda index: (-sizes[index], index)):
        row_of[index] = next((row for row, size in enumerate(used) if size + sizes[index] <= room), len(used))
        if row_of[index] == len(used):
            used.append(0)
        used[row_of[index]] += sizes[index]
    ids, positions = torch.full((len(used), room), pad), torch.zeros(len(used), room, dtype=torch.long)
    segments, filled = torch.full((len(used), room), -BRANCHES), [0] * len(used)
    places: list[list[Tensor]] = []
    for number, (group, common) in enumerate(zip(groups, commons, strict=True)):
        row = row_of[number]
        start = filled[row]
        filled[row] += sizes[number]
        first = torch.arange(start, start + common)
        ids[row, first], positions[row, first] = torch.tensor(group[0][:common], dtype=torch.long), first - start
        segments[row, first] = number * BRANCHES
        begin, own = start + common, []
        for side, one in enumerate(group, 1):
            branch = torch.arange(begin, begin + len(one) - common)
            ids[row, branch] = torch.tensor(one[common:], dtype=torch.long)
            positions[row, branch] = branch - begin + common
            segments[row, branch] = number * BRANCHES + side
            begin += len(one) - common
            own.append(torch.cat([first, branch]) + row * room)
        places.append(own)
    if order is None:
        order = [(group, side) for side in range(len(groups[0])) for group in range(len(groups))]
    read = [places[group][side][begins[group][side]:] for group, side in order]
    return Layout(ids, positions, segments, torch.nn.utils.rnn.pad_sequence(read, batch_first=True))


class LaidOut:
    """Collator around TRL's: the tensors that a trainer's loss reads lose what comes before the first position that is
    read, and the layout goes along. Off, the batch is TRL's own.

    `attention_mask` stays TRL's, which counts tokens by it.
    """

    def __init__(self, collator: Any, laid: Laid) -> None:
        self.collator, self.laid, self.on = collator, laid, False

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        batch = self.collator(examples)
        if not self.on:
            return batch
        pad = self.collator.pad_token_id
        groups, begins = zip(*(self.laid(example, pad) for example in examples), strict=True)
        layout = lay_out(groups, begins, pad)
        ends = [len(group[side]) for side in range(len(groups[0])) for group in groups]
        cuts = [slice(begin[side], None) for side in range(len(groups[0])) for begin in begins]
        for name, filled in {"input_ids": pad, **FILLED}.items():
            if name in batch:
                rows = [row[:end][cut] for row, end, cut in zip(batch[name], ends, cuts, strict=True)]
                batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filled)
        return batch | {f"{PREFIX}{name}": getattr(layout, name) for name in NAMES}


def layout_of(batch: dict[str, Any]) -> tuple[dict[str, Any], Layout | None]:
    """A batch as the trainer knows it, and its layout, if it has one."""
    if f"{PREFIX}ids" not in batch:
        return batch, None
    rest = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
    return rest, Layout(*(batch[f"{PREFIX}{name}"] for name in NAMES))
