"""Prompt files: texts with named slots in braces, which a stage fills. A run file names its own by path; the others are
shipped, configs/prompts/RECIPE-LANGUAGE/STEP.txt, looked for in the working directory, then beside the code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError

_FOLDER = Path("configs") / "prompts"
_SHIPPED = Path(__file__).resolve().parents[2] / _FOLDER
_SLOT = re.compile(r"\{([a-z_]+)\}")


class PromptFile(NamedTuple):
    """Where one step's prompt comes from: `path` as the user wrote it, or None for the one that is shipped.

    Attributes:
        needed: slots that it must have.
        allowed: slots that it may have beside these.
    """

    set: str
    step: str
    path: str | None
    needed: tuple[str, ...]
    allowed: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        if self.path is not None:
            return on_this_machine(self.path)
        own = Path(self.set) / f"{self.step}.txt"
        return next((folder / own for folder in (_FOLDER, _SHIPPED) if (folder / own).is_file()), _FOLDER / own)


def read_prompt(prompt: PromptFile, where: str) -> str:
    """The text, white space at its end left out.

    Raises:
        ConfigError: the file cannot be read, lacks a slot, or has one that nothing fills.
    """
    try:
        text = prompt.file.read_text(encoding="utf-8").rstrip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the prompt file cannot be read: {error}", where=where, found=str(prompt.file),
                          expected="a text file in UTF-8") from error
    slots = _SLOT.findall(text)
    if missing := [name for name in prompt.needed if name not in slots]:
        raise ConfigError(f"the prompt file lacks {_shown(missing)}", where=where, found=str(prompt.file),
                          expected=f"a text with {_shown(prompt.needed)}")
    if strange := sorted({*slots} - {*prompt.needed, *prompt.allowed}):
        raise ConfigError(f"the prompt file has {_shown(strange)}, which nothing fills", where=where,
                          found=str(prompt.file), expected=f"only {_shown((*prompt.needed, *prompt.allowed))}")
    return text


def fill(template: str, values: Mapping[str, str]) -> str:
    """Slots filled in one pass: what stands in braces within a value stays as it is."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), template)


def _shown(names: Collection[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in names)
