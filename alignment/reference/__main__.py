"""Writes the pages of docs/reference/ anew and removes those that are no more.

    python -m alignment.reference docs/reference
"""

from __future__ import annotations

import sys
from pathlib import Path

from alignment.reference.pages import pages


def main(arguments: list[str]) -> int:
    """Write every page into the folder that the one argument names."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    folder, made = Path(arguments[0]), pages()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
