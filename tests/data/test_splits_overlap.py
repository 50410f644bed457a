"""Splits keep texts together and do not move; overlap finds copies and leaves generic questions alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.overlap import find_overlap
from alignment.data.splits import by_ratio
from alignment.records import Record
from alignment.records.importers import Seen
from alignment.records.importers.rows import RowError

RATIOS = {"train": 0.7, "dev": 0.1, "test": 0.15}


def row(id: str, prompt: str = "", **meta) -> Record:
    return Record(id, "prompt-only", [{"role": "system", "content": "You are a careful and helpful assistant, always."},
                                      {"role": "user", "content": prompt or f"prompt {id}"}], meta=meta)


def passage_row(id: str, passage: str, question: str) -> Record:
    return row(id, f"{passage}\n\n{question}", passage=passage, question=question)


groups = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(groups, st.integers(0, 3))
def test_a_group_is_in_one_split_and_ratios_are_met_within_one_group(members, seed):
    records = [row(str(index), group=f"g{group}") for index, group in enumerate(members)]
    splits, outside = by_ratio(records, RATIOS, seed)
    where = {record.id: name for name, rows in {**splits, "": outside}.items() for record in rows}
    assert sorted(where) == sorted(record.id for record in records)
    assert sum(map(len, splits.values())) + len(outside) == len(records)
    for group in set(members):
        assert len({where[str(index)] for index, member in enumerate(members) if member == group}) == 1
    largest = max(Counter(members).values())
    filled = wanted = 0.0
    for name, ratio in RATIOS.items():  # each border is within half a group, so each split within one
        filled, wanted = filled + len(splits[name]), wanted + ratio * len(records)
        assert abs(filled - wanted) <= largest / 2 + 1e-5
    again, _ = by_ratio(records[::-1], RATIOS, seed)
    assert {name: {r.id for r in rows} for name, rows in again.items()} == {
        name: {r.id for r in rows} for name, rows in splits.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 80), st.integers(1, 10), st.integers(0, 3))
def test_added_rows_move_a_border_and_reshuffle_nothing(count, added, seed):
    """Of n rows of their own, adding m moves at most m + 1 over each border, and all of them in one direction."""
    names = list(RATIOS)

    def places(records):
        splits, outside = by_ratio(records, RATIOS, seed)
        return {r.id: index for index, rows in enumerate([*splits.values(), outside]) for r in rows}

    before = places([row(str(i)) for i in range(count)])
    after = places([row(str(i)) for i in range(count + added)])
    for border in range(len(names)):
        left = {id for id in before if before[id] <= border < after[id]}
        entered = {id for id in before if after[id] <= border < before[id]}
        assert not (left and entered)
        assert len(left | entered) <= added + 1


def test_one_more_question_about_a_passage_does_not_move_the_passage():
    records = [row(f"{group} {n}", group=f"g{group}") for group in range(40) for n in range(3)]
    moved = 0
    for group in range(40):
        more = [*records, row(f"{group} more", group=f"g{group}")]
        before, after = (
            {r.meta["group"]: name for name, rows in by_ratio(made, {"a": 0.5, "b": 0.5}, 0)[0].items() for r in rows}
            for made in (records, more))
        moved += before[f"g{group}"] != after[f"g{group}"]
    assert moved <= 1  # the one at the border


def test_another_seed_is_another_split():
    records = [row(str(i)) for i in range(60)]
    one, other = (by_ratio(records, RATIOS, seed)[0]["test"] for seed in (0, 1))
    assert one != other
    assert len(one) == len(other) == 9


def test_same_prompts_passages_and_near_copies_stay_together():
    text = "the old mill by the river {} was sold to a family from the north who wanted to grind their own flour"
    pairs = [[row(f"a{i}", f"Say  WORD{i}"), row(f"b{i}", f"say word{i} ")] for i in range(20)]
    pairs += [[passage_row(f"c{i}", f"passage {i}", "one"), passage_row(f"d{i}", f"Passage {i}", "two")]
              for i in range(20)]
    pairs += [[row("e", text.format("long ago")), row("f", text.format("finally"))]]
    records = [record for pair in zip(*pairs, strict=True) for record in pair]
    for seed in range(5):
        splits, _ = by_ratio(records, {"train": 0.5, "test": 0.5}, seed)
        where = {record.id: name for name, rows in splits.items() for record in rows}
        assert all(where[one.id] == where[other.id] for one, other in pairs)
        assert {len(splits["train"]), len(splits["test"])} == {40, 42}


LONG = ("The expedition reached the northern coast in early spring after months of waiting for the ice to break, and "
        "the captain wrote in his diary that no man aboard had believed they would live to see open water again.")


def test_each_reason_for_overlap():
    seen = [row("s1", "What is the tallest mountain of the southern Alps?"), passage_row("s2", LONG, "Who wrote it?"),
            passage_row("s3", "An unrelated text about bees and honey.", "What do bees make?")]
    test = [row("s1", "something else entirely"), row("t1", "what is the TALLEST mountain of  the southern alps?"),
            passage_row("t2", LONG, "When did they reach it?"),
            passage_row("t3", "Prologue. " + LONG[:150], "Where was the captain?"),
            row("t4", f"Read this. {LONG} What did the captain believe?"),
            row("t5", "An unseen question about the price of tea in the harbour towns of the west coast.")]
    assert find_overlap(test, seen) == {
        "s1": ("s1", "same-id"), "t1": ("s1", "same-prompt"), "t2": ("s2", "same-passage"), "t3": ("s2", "shared-text"),
        "t4": ("s2", "shared-text")}


def test_generic_questions_and_system_messages_are_no_overlap():
    other = "A factory in the valley makes glass bottles for most of the breweries of the country since the last war."
    idea = "What is the main idea of the passage?"
    seen = [passage_row("s1", LONG, idea), row("s2", "What is the capital of France?"),
            row("s3", "What is the name of the president of the French Republic?"), row("s4", f"{LONG} Why is that?")]
    test = [passage_row("t1", other, idea), row("t2", "What is the capital of Spain?"),
            row("t3", "What is the name of the president of the United States?"), row("t4", "Why is that?"),
            row("t5", idea)]
    assert find_overlap(test, seen) == {}
    long_idea = "Which one of these statements about the text above is the most likely?"
    asked = passage_row("s5", other, long_idea)
    assert find_overlap([passage_row("t8", "Bees make honey in hives that people build.", long_idea)], [asked]) == {}
    assert find_overlap([row("t6", "Tell me, what is the capital of France?")], seen) == {}
    longer = row("s", "Now: what is the capital of France?")
    assert find_overlap([row("t7", "what is the capital of France")], [longer]) == {"t7": ("s", "shared-text")}


def test_instructions_around_every_row_are_boilerplate():
    frame = "You are given a review of a product from a large shop. Decide whether its author liked it or not: {}"
    seen = [row(f"s{i}", frame.format(f"item {i} broke")) for i in range(40)]
    assert find_overlap([row("t", frame.format("works as it should"))], seen) == {}
    assert "t" in find_overlap([row("t", frame.format("item one lasted years"))], seen[:3])


def asked(id: str, system: str, prompt: str, answer: str = "Done.") -> Record:
    turns = (("system", system), ("user", prompt), ("assistant", answer))
    return Record(id, "messages", messages=[{"role": role, "content": content} for role, content in turns])


LOG = ("Log of day {0}: lock {0} was painted by the crew of boat {1}, while the pier stayed shut until noon, and "
       "nobody came ashore.")
SUM_UP = "Sum up today's log for me in one short line, please."


def test_a_question_about_many_system_messages_is_a_row_for_each():
    """A text that stands in the system message is what the row is about, as a passage would be."""
    records = [asked(str(n), LOG.format(n, 17 * n), SUM_UP) for n in range(40)]
    splits, _ = by_ratio(records, {"train": 0.7, "dev": 0.15, "test": 0.15}, 0)
    assert [len(rows) for rows in splits.values()] == [28, 6, 6]
    assert find_overlap(records[:10], records[10:]) == {}
    again = asked("again", LOG.format(12, 204), SUM_UP.upper())
    assert find_overlap([again], records) == {"again": ("12", "same-prompt")}
    pieces, _ = by_ratio([*records, again], {"train": 0.5, "test": 0.5}, 1)
    assert any({"12", "again"} <= {record.id for record in rows} for rows in pieces.values())


def test_one_text_under_different_roles_stays_one_text():
    """Roles: short ones, and long ones that many rows share. And a long text, whatever is said before it."""
    capital = "What is the capital of France?"
    roles = ["You are a pirate.", "Be brief.", "Rhyme, always."]
    short = [asked(str(n), role, capital) for n, role in enumerate(roles)]
    assert set(find_overlap(short[:1], short[1:])) == {"0"}
    roles = [f"You are assistant number {n} of a large shipping company and answer every question of its customers in "
             "a friendly, short and truthful way." for n in range(2)]
    shared = [asked(f"{role} {n}", roles[role], f"Where is berth {n}?") for role in (0, 1) for n in range(20)]
    assert set(find_overlap(shared[:20], shared[20:])) == {record.id for record in shared[:20]}
    for one, other in (("0 7", "1 7"), ("0 19", "1 19")):
        splits, _ = by_ratio(shared, {"train": 0.5, "test": 0.5}, 3)
        assert any({one, other} <= {record.id for record in rows} for rows in splits.values())
    long = [asked(f"long {n}", LOG.format(n, n), LONG) for n in range(2)]
    assert set(find_overlap(long[:1], long[1:])) == {"long 0"}


def test_rows_that_differ_only_in_their_system_message_are_no_duplicates():
    seen = Seen()
    for n in range(3):
        seen.add(asked(str(n), LOG.format(n, n), SUM_UP))
    with pytest.raises(RowError, match="duplicate-row: same text as row 1"):
        seen.add(asked("x", LOG.format(1, 1) + "\n", SUM_UP))


def test_chinese_is_compared_by_characters():
    text = "一八九八年春天探险队终于到达北部海岸船长在日记里写道没有人相信他们还能活着看到大海"
    seen = [row("s", f"请阅读{text}然后回答问题")]
    assert find_overlap([row("t", f"根据这段话{text[:30]}说明原因")], seen) == {"t": ("s", "shared-text")}
    assert find_overlap([row("t", "请说明为什么玻璃瓶厂在山谷里生产了大量瓶子并且卖给全国的啤酒厂")], seen) == {}


def test_words_that_share_only_consonants_are_other_words():
    text = "राजा ने अपनी सेना को नदी के पार भेजा और गांव के लोगों से कहा कि वे सब घर में ही रहें"
    signs = str.maketrans("ािीुेो", "ीाुोाे")
    seen = [row("s", f"इसे पढ़ो {text}")]
    assert find_overlap([row("t", f"यह क्या है {text}")], seen) == {"t": ("s", "shared-text")}
    assert find_overlap([row("t", f"यह क्या है {text.translate(signs)}")], seen) == {}


def test_thai_is_compared_by_characters():
    text = "นักสำรวจเดินทางถึงชายฝั่งทางเหนือในฤดูใบไม้ผลิหลังจากรอให้น้ำแข็งแตกมาหลายเดือน"
    seen = [row("s", f"อ่านข้อความนี้{text}แล้วตอบ")]
    assert find_overlap([row("t", f"จาก{text[:60]}จงอธิบาย")], seen) == {"t": ("s", "shared-text")}
    assert find_overlap([row("t", "โรงงานในหุบเขาผลิตขวดแก้วให้โรงเบียร์ส่วนใหญ่ของประเทศตั้งแต่สงครามครั้งก่อน")], seen) == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abcdefgh ", min_size=1, max_size=120), min_size=1, max_size=8))
def test_a_copy_is_always_found(texts):
    seen = [row(f"s{i}", text) for i, text in enumerate(texts)]
    test = [row(f"t{i}", f" {text.upper()}\n") for i, text in enumerate(texts) if text.strip()]
    assert set(find_overlap(test, seen)) == {record.id for record in test}
