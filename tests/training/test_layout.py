"""Several sequences in one: where tokens stand, and what they see."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

PAD = 0
IDS = st.lists(st.integers(1, 3), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(IDS, IDS).map(list), min_size=1, max_size=5)


def laid(groups: list[list[list[int]]], begins: list[list[int]] | None = None) -> Any:
    from alignment.training.layout import lay_out

    return lay_out(groups, begins or [[0] * len(group) for group in groups], PAD)


def test_a_pair_has_what_both_begin_with_once() -> None:
    made = laid([[[1, 2, 3, 4], [1, 2, 5]]], [[1, 1]])
    assert made.ids.tolist() == [[1, 2, 3, 4, 5]]
    assert made.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert made.segments.tolist() == [[0, 0, 1, 1, 2]]
    assert made.place.tolist() == [[1, 2, 3], [1, 4, 0]]
    assert made.seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


def test_short_groups_share_a_row_and_none_is_longer_than_the_longest() -> None:
    made = laid([[[1] * 3], [[2] * 7], [[3] * 4], [[4]]])
    assert made.ids.tolist() == [[2] * 7, [1] * 3 + [3] * 4, [4] + [PAD] * 6]


def test_sequences_stand_in_trls_order_all_first_ones_and_then_all_second_ones() -> None:
    made = laid([[[1, 2], [1, 3]], [[4, 5], [4, 6]]])
    assert made.ids.flatten()[made.place].tolist() == [[1, 2], [4, 5], [1, 3], [4, 6]]


@given(PAIRS)
def test_every_token_stands_in_its_place_and_sees_its_own_sequence_up_to_itself(groups: list[list[list[int]]]) -> None:
    made = laid(groups)
    ids, positions, room = made.ids.flatten(), made.positions.flatten(), made.ids.shape[1]
    sequences = [group[side] for side in (0, 1) for group in groups]
    for own, place in zip(sequences, made.place.tolist(), strict=True):
        here = place[:len(own)]
        assert ids[here].tolist() == own
        assert positions[here].tolist() == list(range(len(own)))
        for index, at in enumerate(here):
            row, token = divmod(at, room)
            assert made.seen[row, 0, token].nonzero().flatten().add(row * room).tolist() == sorted(here[:index + 1])


@given(PAIRS, st.integers(1, 4))
def test_a_window_counts_places_of_the_sequence_and_not_of_the_row(groups: list[list[list[int]]], window: int) -> None:
    made = laid(groups)
    seen, room = made.within(window), made.ids.shape[1]
    for own, place in zip([group[side] for side in (0, 1) for group in groups], made.place.tolist(), strict=True):
        for index in range(len(own)):
            row, token = divmod(place[index], room)
            expected = sorted(place[max(0, index - window + 1):index + 1])
            assert seen[row, 0, token].nonzero().flatten().add(row * room).tolist() == expected


def test_hidden_states_go_back_to_where_they_are_read_and_gradients_of_what_is_shared_add_up() -> None:
    import torch

    made = laid([[[1, 2, 3], [1, 2, 4]]], [[1, 1]])
    states = torch.arange(8.0).view(1, 4, 2).requires_grad_()
    read = made.read(states)
    assert read.tolist() == [[[2, 3], [4, 5]], [[2, 3], [6, 7]]]
    read.sum().backward()
    assert states.grad is not None
    assert states.grad[0, :, 0].tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize(("ids", "labels", "begin"), [
    ([5, 6, 7, 8], [-100, -100, 7, 8], 1), ([5, 6], [5, 6], 0), ([5, 6], [-100, -100], 1), ([5, 6], [-100, 6], 0),
])
def test_a_row_of_sft_is_read_from_the_token_before_what_is_learned(
    ids: list[int], labels: list[int], begin: int
) -> None:
    from alignment.training.methods.sft import laid

    assert laid({"input_ids": ids, "labels": labels}, PAD) == ([ids], [begin])


@pytest.mark.parametrize(("chosen", "begins"), [([4, 5], [1, 2]), ([4, PAD], [0, 2]), ([PAD], [0, 2])])
def test_a_side_of_a_reward_pair_is_read_at_its_last_real_token(chosen: list[int], begins: list[int]) -> None:
    from alignment.training.methods.reward import laid

    assert laid({"chosen_ids": chosen, "rejected_ids": [4, 6, 7]}, PAD) == ([chosen, [4, 6, 7]], begins)


def test_an_answer_without_a_prompt_is_read_from_its_first_token() -> None:
    from alignment.training.methods.dpo import laid

    assert laid({"prompt_ids": [], "chosen_ids": [1], "rejected_ids": [2, 3]}, PAD) == ([[1], [2, 3]], [0, 0])
