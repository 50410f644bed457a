"""What rows are looked through for before they are kept: an optional section of stages that bring or make rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from alignment.config.stages.base import Finding
from alignment.config.stages.fields import Strict

Kind = Literal["card", "email", "ip", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REFUSALS = ("near-duplicate", "other-language", "personal-data")
"""Reasons of rows that `hygiene` left out: asked for, so `max_bad` does not count them."""


class Hygiene(Strict):
    """Rows that are left out, or changed, for what their texts are. Needs the packages of `kubealign[hygiene]`."""

    near_duplicates: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """A row is left out whose prompt and whose answer each share so many of their runs of 3 words (Jaccard; 0.8 is
    usual) with an earlier row's. Passages and system messages do not count."""
    language: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Languages that rows may be in, [en] or [zh, en]; a row of which a text is surely in another one is left out.
    Short texts, code and names, of which nobody can be sure, are kept."""
    personal_data: Annotated[tuple[Kind, ...], Field(min_length=1)] | None = None
    """What is looked for: email, phone (with + and country code), ip (public addresses), card (numbers that check)."""
    phone_regions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Countries whose phone numbers are found without a country code as well: [US, DE]."""
    found: Literal["refuse", "replace"] | None = None
    """What becomes of a row with personal data: left out (default), or [EMAIL], [PHONE], [IP], [CARD] in its place."""


def hygiene_findings(hygiene: Hygiene | None) -> Iterator[Finding]:
    """What is wrong within a section, seen from its stage: keys that would do nothing."""
    if hygiene is None:
        return
    looked = hygiene.personal_data or ()
    if hygiene.near_duplicates is None and hygiene.language is None and not looked:
        yield Finding(("hygiene",), "looks for nothing", hygiene.model_dump(exclude_none=True),
                      "near_duplicates, language or personal_data")
    elif hygiene.found is not None and not looked:
        yield Finding(("hygiene", "found"), "no personal data is looked for", hygiene.found, "personal_data beside it")
    if hygiene.phone_regions is not None and "phone" not in looked:
        yield Finding(("hygiene", "phone_regions"), "no phone numbers are looked for", list(hygiene.phone_regions),
                      "phone in personal_data")
