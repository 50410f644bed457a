"""What a word is, in every script: the one unit of exact match, F1, ROUGE-L, lengths, brevity and overlap.

- Scripts written with blanks: words are what stands between blanks. Combining marks (categories Mn and Mc) and the
  joiners ZWJ and ZWNJ belong to the letter before them, as in Unicode's word boundaries (UAX #29, WB4): a Hindi word
  is not cut at its vowel signs, and one with another vowel sign is another word. Korean is written with blanks.
- Chinese characters, kana and bopomofo: each is a unit, as in MLQA's script (Lewis et al. 2020, arXiv:1910.07475).
- Thai, Lao, Khmer, Burmese, Tibetan and their kin, the scripts of UAX #14's class SA and Tibetan, have no blanks
  between words: a letter with its marks is a unit (UAX #29's grapheme cluster, with stacked consonants in one).

Plain functions, for rewards, data and evaluation alike. Knows no records and no metrics.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_IDEOGRAPHS = ("\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf"
               "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003fffd")
_WITHOUT_BLANKS = ((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF),
                   (0xA9E0, 0xA9FF), (0xAA60, 0xAADF), (0x11700, 0x1174F))
_STACKER = "\u1039\u17d2\u1a60"
"""Signs (Burmese virama, Khmer coeng, Tai Tham sakot) that put the next consonant below the last one."""
_AM = "\u0e33\u0eb3"
"""Thai and Lao AM: letters by category, marks by use (UAX #29: SpacingMark)."""
_OTHER_SHAPES = re.compile("[\ufb1d-\ufdff\ufe30-\ufefe\uff00-\uffef]+")
"""The same letters and signs in another width or position: full and half width, Arabic and Hebrew presentation forms.
NFKC is for these alone; of ½, x² or ™ it would make other words."""
_UNSEEN = str.maketrans({"\u200b": " ", "\u1361": " "} | dict.fromkeys(
    [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x206A), 0xFEFF]))
"""Zero-width and Ethiopic word spaces are blanks; marks of direction and byte order are nothing."""
_SCANNED = range(0xA1, 0x1F000)


def form(text: str) -> str:
    """Lower case, one code for one letter: NFC, full-width and presentation forms as plain ones, final sigma as sigma,
    nothing that cannot be seen.

    Of ASCII text it is `lower`, as in SQuAD's and rouge_score's scripts.
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFC", text.translate(_UNSEEN))
    text = _OTHER_SHAPES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFC", text.lower()).replace("\u03c2", "\u03c3")
    # NFKC takes AM apart.
    return text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")


def words(text: str, *, joined: str = "") -> list[str]:
    """The words of a text without anything that is not a letter, a digit or a mark; equal to rouge_score's on ASCII.

    Args:
        joined: further characters that belong to words.
    """
    text = form(text)
    if text.isascii():
        return re.findall(rf"[a-z0-9{joined}]+", text)
    return _words(joined).findall(text)


def pieces(text: str) -> list[str]:
    """What stands between blanks, and the units of scripts without them; punctuation stays where it is in a word.

    Equal to `str.split` for scripts with blanks. Punctuation that touches a unit of a script without them is left out.
    """
    text = form(text)
    if text.isascii():
        return text.split()
    parts, trimmed = _pieces()
    return parts.findall(trimmed.sub(" ", text))


def word_starts(text: str) -> list[int]:
    """Where each word begins in the text as it stands: between two of these places nothing may be cut apart.

    Words are what stands between blanks, and the units of scripts without them, as far as they have a letter or a
    digit; what has none belongs to the word before it, and an opening bracket to what it opens.
    """
    if text.isascii():
        return [match.start() for match in re.finditer(r"[^\sA-Za-z0-9]*[A-Za-z0-9]\S*", text)]
    parts, _ = _pieces()
    starts: list[int] = []
    end, opened = -1, -1
    for match in parts.finditer(text):
        first = next((place for place, sign in enumerate(match[0]) if sign.isalnum()), None)
        if match.start() > end:
            opened = match.start()
        elif opened < 0 and first is not None:  # a full stop after a Chinese character belongs to that
            opened = match.start() + first
        if first is not None and opened >= 0:
            starts.append(opened)
            opened = -1
        end = match.end()
    return starts


@cache
def punctuation(*, typographic: bool) -> re.Pattern[str]:
    """A sign of punctuation: ASCII's and category P; the curly quotes and dashes of Latin typesetting if wanted."""
    plain = r"!-/:-@\[-`{-~"  # string.punctuation
    kept = "" if typographic else "(?![\u00a1-\u00bf\u2010-\u205e])"
    return re.compile(f"{kept}[{plain}{_classes()[2]}]")


def last_letter(text: str) -> int:
    """Where the last letter of a text begins, with its marks: what may follow could still belong to it, and what stands
    before it is what it is. A letter is UAX #29's extended grapheme cluster, as far as marks, joiners, stacked
    consonants, skin tones, flags and CRLF go. 0 of an empty text."""
    place = max(0, len(text) - 1)
    while place > 0 and _is_within(text[place - 1], text[place]):
        place -= 1
    return place


def _is_within(before: str, letter: str) -> bool:
    """Whether no letter begins between these two."""
    if letter < "\u0300":
        return before + letter == "\r\n"
    return (unicodedata.category(letter) in ("Mn", "Mc", "Me") or letter in f"\u200c\u200d{_AM}"
            or before in f"\u200d{_STACKER}" or "\U0001f3fb" <= letter <= "\U0001f3ff"
            or "\U000e0020" <= letter <= "\U000e007f" or (_is_flag(before) and _is_flag(letter)))


def _is_flag(letter: str) -> bool:
    return "\U0001f1e6" <= letter <= "\U0001f1ff"


def marks() -> str:
    """Combining marks (Mn, Mc), as the inside of a character class; variation selectors change no letter."""
    return _classes()[0]


@cache
def _classes() -> tuple[str, str, str]:
    """(marks, letters of scripts without blanks, punctuation beyond ASCII) for character classes."""
    found: dict[str, list[int]] = {"marks": [], "letters": [], "punctuation": []}
    for code in _SCANNED:
        category = unicodedata.category(chr(code))
        if category in ("Mn", "Mc"):
            if not 0xFE00 <= code <= 0xFE0F:
                found["marks"].append(code)
        elif category[0] == "P":
            found["punctuation"].append(code)
        elif category[0] == "L" and any(low <= code <= high for low, high in _WITHOUT_BLANKS):
            found["letters"].append(code)
    marked, letters, signs = (_ranges(codes) for codes in found.values())
    return marked, letters, signs


def _ranges(codes: list[int]) -> str:
    """Rising codes as ranges of a character class."""
    parts: list[list[int]] = []
    for code in codes:
        if parts and parts[-1][1] == code - 1:
            parts[-1][1] = code
        else:
            parts.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in parts)


def _cluster() -> str:
    marked, letters, _ = _classes()
    return f"[{letters}](?:[{_STACKER}][{letters}]|[{marked}{_AM}])*"


@cache
def _words(joined: str) -> re.Pattern[str]:
    marked, letters, _ = _classes()
    letter = rf"[^\W_{_IDEOGRAPHS}{letters}]" + (f"|[{joined}]" if joined else "")
    word = rf"(?:{letter})(?:{letter}|[{marked}]|[\u200c\u200d](?={letter}|[{marked}]))*"
    return re.compile(f"[{_IDEOGRAPHS}]|{_cluster()}|{word}")


@cache
def _pieces() -> tuple[re.Pattern[str], re.Pattern[str]]:
    _, letters, _ = _classes()
    one, signs = f"[{_IDEOGRAPHS}]|{_cluster()}", punctuation(typographic=True).pattern
    alone = f"[{_IDEOGRAPHS}{letters}]"
    return (re.compile(rf"{one}|[^\s{_IDEOGRAPHS}{letters}]+"),
            re.compile(f"(?<={alone})(?:{signs})+|(?:{signs})+(?={alone})"))
