"""Charts: known numbers stand where they belong, and nothing a chart is given becomes markup."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.report.charts import (
    BOTTOM,
    HOVERS,
    LEFT,
    RIGHT,
    TOP,
    Counts,
    Series,
    bars,
    histogram,
    line_chart,
    thinned,
    whisker,
)
from alignment.report.svg import Scale, px, shortened, tag, text_width, ticks


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    found = [node for node in ElementTree.fromstring(svg).iter("polyline") if kind in node.attrib["class"].split()]
    return [tuple(map(float, pair.split(","))) for node in found for pair in node.attrib["points"].split()]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.61, 2.1, [0.5, 1.0, 1.5, 2.0, 2.5]), (-3, 7, [-4, -2, 0, 2, 4, 6, 8]),
     (1e-5, 4e-5, [1e-5, 2e-5, 3e-5, 4e-5])],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(1e-7, 1e5), st.floats(0.0, 1.0), st.booleans())
def test_no_two_ticks_of_an_axis_read_alike(value: float, spread: float, negative: bool) -> None:
    value = -value if negative else value
    svg = line_chart("Entropy", [Series("train", [(1, value), (2, value * (1 + spread))], "s1")])
    root = ElementTree.fromstring(svg)
    labels = [node.text or "" for node in root.iter("text") if node.attrib.get("text-anchor") == "end"]
    assert len(set(labels)) == len(labels) > 1
    assert [float(label.replace(",", "")) for label in labels] == sorted(float(x.replace(",", "")) for x in labels)


def test_between_two_steps_there_is_no_third() -> None:
    root = ElementTree.fromstring(line_chart("Loss", [Series("train", [(1, 6.3), (2, 6.1), (3, 6.0)], "s1")]))
    *steps, _ = [node.text for node in root.iter("text") if node.attrib.get("text-anchor") == "middle"]
    assert steps == ["1", "2", "3"]


def test_a_line_goes_through_its_points() -> None:
    svg = line_chart("Loss", [Series("train", [(0, 0.0), (50, 1.0), (100, 0.5)], "s1")])
    width, height = RIGHT - LEFT, BOTTOM - TOP
    expected = [(LEFT, BOTTOM), (LEFT + width / 2, TOP), (RIGHT, BOTTOM - height / 2)]
    for found, wanted in zip(points(svg, "line"), expected, strict=True):
        assert found == pytest.approx(wanted, abs=0.01)


def test_a_line_chart_names_its_axis_values_and_series() -> None:
    svg = line_chart("Loss", [Series("train", [(0, 0.0), (100, 1.0)], "s1"), Series("eval", [(50, 0.5)], "s3", "dots")])
    root = ElementTree.fromstring(svg)
    texts = [node.text for node in root.iter("text")]
    assert {"0.0", "1.0", "0", "100", "train", "eval", "step"} <= set(texts)
    assert root[0].tag == "title"
    assert root[0].text == "Loss"
    assert "step 50\neval: 0.500" in [node.text for node in root.iter("title")]


def test_values_that_are_no_numbers_make_no_points() -> None:
    nan = float("nan")
    svg = line_chart("Loss", [Series("train", [(0, 1.0), (1, nan), (2, float("inf")), (3, 2.0)], "s1")])
    assert len(points(svg, "line")) == 2
    assert "nan" not in svg
    ElementTree.fromstring(line_chart("Loss", [Series("train", [(0, nan)], "s1")]))


def test_bounds_and_reference() -> None:
    svg = line_chart("Accuracy", [Series("train", [(0, 0.35), (9, 1.0)], "s1")], bounds=(0, 1), reference=0.5)
    lines = [node for node in ElementTree.fromstring(svg).iter("line") if node.attrib.get("class") == "reference"]
    assert float(lines[0].attrib["y1"]) == pytest.approx(BOTTOM - (BOTTOM - TOP) * (0.5 - 0.2) / 0.8, abs=0.01)
    assert not [node for node in ElementTree.fromstring(svg).iter("text") if node.text == "1.2"]
    constant = line_chart("Accuracy", [Series("train", [(0, 1.0), (9, 1.0)], "s1")], bounds=(0, 1))
    assert all(TOP <= y <= BOTTOM for _, y in points(constant, "line"))


def test_long_curves_are_thinned_to_means() -> None:
    curve = [(float(x), float(x % 2)) for x in range(1000)]
    thin = thinned(curve, 100)
    assert len(thin) == 100
    assert all(y == pytest.approx(0.5) for _, y in thin)
    assert thinned(curve[:100], 100) == curve[:100]
    svg = line_chart("x", [Series("train", thin, "s1")])
    assert svg.count('class="at"') <= HOVERS * 1.25


def test_histogram_heights_are_shares() -> None:
    svg = histogram("Reward", [Counts("a", [0, 1, 2], [3, 1], "s1"), Counts("b", [0, 1, 2], [0, 8], "s0", False)],
                    x_label="reward")
    paths = [node.attrib["d"] for node in ElementTree.fromstring(svg).iter("path")]
    y = Scale((0.0, 1.0), (198.0, TOP))
    middle = (LEFT + 450) / 2
    assert paths[0] == f"M46,198V{px(y(0.75))}H{px(middle)}V{px(y(0.25))}H450V198"
    assert paths[1] == f"M46,198V198H{px(middle)}V{px(TOP)}H450V198"


def test_histograms_that_cannot_be_drawn_are_left_out() -> None:
    assert not Counts("a", [0, 1], [1, 2], "s1").usable
    assert not Counts("a", [0, 1], [0], "s1").usable
    assert not Counts("a", [], [], "s1").usable
    assert "<path" not in histogram("x", [Counts("a", [], [], "s1")], x_label="x")


def test_whisker_dot_interval_and_reference() -> None:
    root = ElementTree.fromstring(whisker("dpo", 0.75, 0.5, 1.0, (0, 1), "s1", reference=0.5, width=108))
    assert float(next(root.iter("circle")).attrib["cx"]) == 4 + 75
    lines = {node.attrib["class"]: node.attrib for node in root.iter("line")}
    assert (float(lines["span s1"]["x1"]), float(lines["span s1"]["x2"])) == (54, 104)
    assert float(lines["reference"]["x1"]) == 54
    assert "span" not in whisker("dpo", 0.75, None, None, (0, 1), "s1")


def test_bars_are_as_long_as_their_values() -> None:
    svg = bars("Time", [("a", 10.0, "10 s", "s1"), ("b", 5.0, "5 s", "s1"), ("c", float("nan"), "not finished", "s1")])
    widths = [float(node.attrib["width"]) for node in ElementTree.fromstring(svg).iter("rect")]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.01)
    assert widths[2] == 0


def test_everything_is_escaped() -> None:
    svg = line_chart('<b>"&', [Series("<i>", [(0, 1), (1, 2)], '"><x')])
    ElementTree.fromstring(svg)
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert tag("text", "<a>", class_='"') == '<text class="&#34;">&lt;a&gt;</text>'


def test_text_is_cut_to_its_width() -> None:
    assert shortened("short", 200, 12) == "short"
    cut = shortened("a very long name of a stage", 80, 12)
    assert cut.endswith("…")
    assert text_width(cut, 12) <= 80
    assert text_width("汉字", 10) > 2 * text_width("ab", 10) * 0.8
