"""GSM8K's accuracy: the number that an answer comes to."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from alignment.evaluation.measures.base import SHARE, Measure, Reply, Rules
from alignment.words import form

_MARK = "####"
_SIGN = r"(?:(?<![\w).%])[-+−–])?"
_CURRENCY = r"(?:[$€£¥]\s?)?"
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d])|\d{1,300}(?!\d))"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN}){_CURRENCY}(?P<inner>(?<=[$€£¥])[-−])?(?<![a-z_\d])(?<!\d\.)(?P<chain>(?<=\d/))?"
    rf"(?:(?P<whole>\d{{1,9}})\s(?=\d{{1,9}}\s?/\s?\d{{1,9}}(?![\d/])))?"
    rf"(?P<value>{_DIGITS}(?:\.\d{{1,300}}(?!\d))?|\.\d{{1,300}}(?!\d))"
    rf"(?:e(?P<power>[-+]?\d{{1,3}})(?!\d))?(?(chain)|(?:\s?/\s?(?P<below>\d{{1,9}})(?![\d/]))?)")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_FRAC = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def final_number(text: str) -> Fraction | None:
    """The number after the last `####`, or the last number of a text without that mark; None where there is none.

    Thousands separators (`1,234`, `1,00,000`), signs, decimals, currencies before a number and units after it,
    fractions (`3/4`, `1 1/2`, `½`, `\\frac{1}{2}`) and powers (`2e3`). A minus between two numbers is no sign. Numbers
    in words are not read, nor are digits within a name (`A4`).
    """
    text = _VULGAR.sub(lambda one: " " + unicodedata.normalize("NFKC", one[0]).replace("\u2044", "/"), form(text))
    text = _FRAC.sub(r" \1/\2", text)
    _, mark, after = text.rpartition(_MARK)
    matches = list(_NUMBER.finditer(after if mark else text))
    if not matches:
        return None
    return _value(matches[0] if mark else matches[-1])


def _value(match: re.Match[str]) -> Fraction | None:
    value = Fraction(match["value"].replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    if match["below"] is not None:
        if int(match["below"]) == 0:
            return None
        value = value / int(match["below"]) + int(match["whole"] or 0)
    return -value if (match["sign"] or match["inner"] or "+") != "+" else value


def lacks(reply: Reply, rules: Rules) -> str | None:
    return None if _wanted(reply, rules) is not None else "no reference with a number"


def number(reply: Reply, rules: Rules) -> float:
    """1.0 where the answer comes to the reference's number, compared as numbers: 18, 18.0 and $18 are one."""
    return float(final_number(rules.part(reply.text)) == _wanted(reply, rules))


def _wanted(reply: Reply, rules: Rules) -> Fraction | None:
    """The number of the first reference that has one."""
    return rules.first(final_number, reply.references)


MEASURE = Measure(
    title="Final number",
    text="Share of rows whose answer comes to the reference's number: the one after ####, or the last one of the text, "
         "compared as numbers (18.0, $18 and 18 are one).",
    source="GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose own script reads what stands after #### alone",
    span=SHARE, better="higher", number=number, lacks=lacks, needs="references have a number")
