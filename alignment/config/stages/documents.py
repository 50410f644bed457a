"""Documents brought in as passages: which files, how they are cut. Reads no file; a folder is listed, as its files are
what the stage reads."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from alignment.config.stages.base import Finding, Outside, Stage, plural
from alignment.config.stages.fields import Fraction, Positive, Strict, on_this_machine
from alignment.config.stages.imports import RatioSplit

ENDINGS = {
    ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html",
    ".xhtml": "html", ".pdf": "pdf", ".docx": "docx", ".csv": "csv", ".tsv": "csv",
}
"""Ending of a file's name, in small letters -> what reads it."""
_MAGIC = re.compile(r"[*?]")
"""Brackets are no pattern: many files are called `paper [1].pdf`."""


class DocumentFile(NamedTuple):
    """One file that a stage reads: what rows call it, where it lies, and the entry that names it."""

    name: str
    path: str
    entry: Documents

    @property
    def kind(self) -> str | None:
        """What reads it; None of an ending that nothing reads."""
        return ENDINGS.get(Path(self.path.partition("?")[0] if "://" in self.path else self.path).suffix.lower())


class Listed(NamedTuple):
    """The files of an entry, and what a folder holds beside them: why it is left out -> how many."""

    files: list[DocumentFile]
    skipped: Counter[str]


class Documents(Strict):
    """Files of documents, by one path."""

    path: str
    """A file, a folder with all that lies below it, a pattern (notes/**/*.md), or an fsspec URL of one file. By ending:
    txt, md, html, pdf, docx, csv, tsv. In a folder other endings, hidden files and linked folders are left out,
    and counted."""
    text: str | None = None
    """Only for csv and tsv: the text of a row, with columns in braces ("{title}: {body}"). Default: every cell that
    says something, as `column: cell`, a line each."""
    encoding: str | None = None
    """Of txt, md, csv and html, where it is not UTF-8 (nor UTF-16 with a byte order mark): gb18030, latin-1, ... Never
    guessed."""
    name: str | None = None
    """What rows call the file; of several, the folder before their names. Default: a single file's base name, else the
    path below the folder, or below the fixed part of the pattern."""

    def listed(self) -> Listed:
        """Its files in the order of their names. One that is not there is listed all the same: whoever opens it says
        so."""
        skipped: Counter[str] = Counter()
        if "://" not in self.path:
            local = on_this_machine(self.path)
            if local.is_dir():
                below = sorted(_below(local, skipped))
                return Listed([self._file(f"{self.path.rstrip('/') or '/'}/{one}", one) for one in below], skipped)
            if (magic := _MAGIC.search(self.path)) and not local.exists():
                base = self.path[: self.path.rfind("/", 0, magic.start()) + 1]
                pattern = str(local).replace("[", "[[]")
                found = sorted(one for one in glob.glob(pattern, recursive=True) if os.path.isfile(one))
                start = len(str(on_this_machine(base or "."))) + 1 if base else 0
                known = [one for one in found if Path(one).suffix.lower() in ENDINGS]
                skipped.update(f"ending {_ending(one)}" for one in found if one not in known)
                return Listed([self._file(base + one[start:], one[start:]) for one in known], skipped)
        base = self.path.partition("?")[0] if "://" in self.path else self.path
        return Listed([DocumentFile(self.name or base.rstrip("/").rsplit("/", 1)[-1], self.path, self)], skipped)

    def _file(self, path: str, below: str) -> DocumentFile:
        return DocumentFile(below if self.name is None else f"{self.name}/{below}", path, self)


def _below(folder: Path, skipped: Counter[str]) -> Iterator[str]:
    """Paths below a folder of files that something reads. Linked folders are not entered: they may lead back."""
    for at, folders, names in os.walk(folder):
        linked = [one for one in folders if os.path.islink(os.path.join(at, one))]
        skipped["linked folder"] += len(linked)
        skipped["hidden"] += sum(one.startswith(".") for one in (*folders, *names))
        folders[:] = [one for one in folders if one not in linked and not one.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in ENDINGS:
                yield os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
            else:
                skipped[f"ending {_ending(name)}"] += 1


def _ending(name: str) -> str:
    return Path(name).suffix.lower() or "none"


class ImportDocuments(Stage):
    """Read documents and cut them into passages, for recipes that ask about passages; each knows its file, page or
    row, and characters. Nothing can be trained on passages alone."""

    tag: ClassVar[str] = "import-documents"
    makes = "rows"
    brings_data = True
    body = "alignment.data.import_documents:import_documents"
    script = "import_stage"

    kind: Literal["import"] = "import"
    """`import` with `documents` makes passages of them."""
    documents: tuple[Documents, ...] = Field(min_length=1)
    """The files, folders or patterns. A passage that an earlier document held already is a bad row."""
    chunk_words: Positive = 200
    """The most words of a passage; each Chinese character is one. Cut between paragraphs where that leaves at least
    half, else between sentences, and within a sentence only where it is longer than this."""
    overlap_words: Annotated[int, Field(ge=0)] = 40
    """A passage begins with the last sentences of the one before, as many whole ones as are within so many words; with
    none where a heading begins it, or where there is one passage alone."""
    min_words: Annotated[int, Field(ge=0)] = 8
    """A passage of fewer words is left out and counted: page numbers, headings alone, cells of a table."""
    take: Positive | None = None
    """At most so many passages (times the run's scale), drawn with the run's seed; memory does not grow with the
    others, so that a table of a million rows can be drawn from."""
    split: RatioSplit | None = None
    """How passages are divided, a document whole (of a table, a row). Default: all of them are `train`."""
    max_file_mb: Positive = 64
    """A larger file is refused, as it is read whole; csv and tsv are not, and may have any size."""
    max_bad: Fraction | None = 0.1
    """The stage fails when more than this share of the files cannot be read (no text, encrypted, broken); null accepts
    any number, as long as there is a passage."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("documents") is not None

    def listed(self) -> Listed:
        """Every file, in order, each with a name of its own."""
        files: list[DocumentFile] = []
        skipped: Counter[str] = Counter()
        names: set[str] = set()
        for entry in self.documents:
            one = entry.listed()
            skipped += one.skipped
            for file in one.files:
                name, number = file.name, 2
                while name in names:
                    name, number = f"{file.name}~{number}", number + 1
                names.add(name)
                files.append(file._replace(name=name))
        return Listed(files, skipped)

    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.split is None else self.split.splits

    @property
    def parted(self) -> bool:
        return self.split is not None

    def sources(self) -> tuple[Outside, ...]:
        made = []
        for index, entry in enumerate(self.documents):
            # A folder without a file stands for itself, so that whoever reads it says what is wrong.
            found = entry.listed().files or [DocumentFile(entry.path, entry.path, entry)]
            made += [Outside(("documents", index, "path"), file, file.path, travels=True) for file in found]
        return tuple(made)

    @property
    def draws(self) -> bool:
        return self.split is not None or self.take is not None

    def relocated(self, paths: Mapping[str, str]) -> Self:
        made: list[Documents] = []
        for entry in self.documents:
            files = entry.listed().files
            if any(file.path in paths for file in files):
                made += [entry.model_copy(update={"path": paths.get(file.path, file.path), "name": file.name})
                         for file in files]
            else:
                made.append(entry)
        return self.model_copy(update={"documents": tuple(made)})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        # A folder is what it holds: names count, in this order, and where they lie does not.
        config["documents"] = [
            {"name": file.name, **file.entry.model_dump(mode="json", exclude={"path", "name"}, exclude_none=True)}
            for file in self.listed().files]
        return config

    def findings(self) -> Iterator[Finding]:
        if 2 * self.overlap_words > self.chunk_words:
            yield Finding(("overlap_words",), "is over half of chunk_words, so most text would stand in three passages",
                          self.overlap_words, f"at most {self.chunk_words // 2}")
        if self.min_words > self.chunk_words:
            yield Finding(("min_words",), "is above chunk_words, so no passage is kept", self.min_words,
                          f"at most {self.chunk_words}")

    def title(self) -> str:
        return f"import · documents of {plural(len(self.documents), 'place')}"
