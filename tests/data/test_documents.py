"""Readers of documents: what each makes of its files, and one clear reason for each file that cannot be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from alignment.config import DocumentFile, Documents
from alignment.data.documents.blocks import Block, Part
from alignment.data.documents.readers import parts_of
from alignment.errors import DataError
from alignment.records.importers.rows import RowError
from tests.data.document_files import docx, encrypted, pdf

LIMIT = 2**20


def parts(path: Path, counts: Counter[str] | None = None, **keys: str) -> list[Part | RowError]:
    entry = Documents(path=str(path), **keys)
    return list(parts_of(DocumentFile(path.name, str(path), entry), LIMIT, Counter() if counts is None else counts))


def blocks(path: Path, data: bytes | str, counts: Counter[str] | None = None, **keys: str) -> list[Block]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    (part,) = parts(path, counts, **keys)
    assert isinstance(part, Part)
    return part.blocks


def test_text_has_paragraphs(tmp_path: Path) -> None:
    assert [block.text for block in blocks(tmp_path / "a.txt", "One\r\ntwo.\r\n \r\nThree.\r\n")] == [
        "One\ntwo.", "Three."]


def test_markdown_has_headings_and_fences(tmp_path: Path) -> None:
    made = blocks(tmp_path / "a.md", "---\ntitle: x\n---\n# Top #\ntext\n\nUnder\n-----\n"
                                     "```\n# no heading\n\nend\n```\n###### Six\nlast")
    assert made == [Block("Top", 1), Block("text"), Block("Under", 2), Block("```\n# no heading\n\nend\n```"),
                    Block("Six", 6), Block("last")]


def test_a_page_without_its_navigation(tmp_path: Path) -> None:
    made = blocks(tmp_path / "a.html", """<html><head><title>T</title><style>p {}</style></head><body>
        <nav><p>Home | About</p></nav><header>Site</header>
        <main><h1>The <em>harbour</em></h1><p>Nine&nbsp;metres<br>deep. <!-- no --><script>x()</script>Tail.</p>
        <ul><li>one <b>bold</b></li><li>two</li></ul>
        <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><pre>x  =
  1</pre><article><header>By A. Author</header></article></main><footer>(c)</footer></body></html>""")
    assert made == [Block("The harbour", 1), Block("Nine metres\ndeep. Tail."), Block("- one bold"), Block("- two"),
                    Block("a | b"), Block("1 | 2"), Block("x  =\n  1"), Block("By A. Author")]


@pytest.mark.parametrize(("said", "encoding"), [
    ('<meta charset="gb2312">', "gb18030"), ('<meta http-equiv="Content-Type" content="text/html; charset=latin-1">',
                                             "latin-1"), ("", "utf-8")])
def test_a_page_says_its_encoding(tmp_path: Path, said: str, encoding: str) -> None:
    text = "港口很深" if encoding != "latin-1" else "Fährüberfahrt"
    made = blocks(tmp_path / "a.html", f"<html><head>{said}</head><body><p>{text}</p></body></html>".encode(encoding))
    assert made == [Block(text)]


def test_a_page_that_is_deeper_than_the_parser_goes_is_refused_and_a_large_one_read(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>start</p>" + "<div>" * 3000 + "deep" + "</div>" * 3000 + "<p>after</p>")
    with pytest.raises(RowError, match="cannot be read to its end") as error:
        parts(tmp_path / "a.html")
    assert error.value.slug == "broken"
    large = "<p>" + "word " * 100_000 + "</p>"
    assert len(blocks(tmp_path / "b.html", large)[0].text) == 499_999


def test_a_word_document_has_headings_and_tables(tmp_path: Path) -> None:
    made = blocks(tmp_path / "a.docx", docx([("Title", "Harbour"), ("Heading 2", "Tides"), ("Normal", "It rises."),
                                             [["a", "b"], ["1", ""]], ("Normal", " ")]))
    assert made == [Block("Harbour", 1), Block("Tides", 2), Block("It rises."), Block("a | b\n1")]


def test_a_pdf_has_paragraphs_over_pages_without_running_lines_and_hyphens(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    filler = "The harbour of the old town is nine metres deep in the middle and it"
    pages = [["The Port Gazette", filler, "freezes in most winters for some weeks, and the fer-", "ry stops.", "",
              "A well-known pilot lives above the bakery with a cat, a dog and the well-", "known bird that cannot",
              "1"],
             ["The Port Gazette", "sing any more, as it is old.", "", "Second paragraph of this page ends here.", "2"],
             ["The Port Gazette", "Third page.", "3"], []]
    made = blocks(tmp_path / "a.pdf", pdf(pages), counts)
    assert [(block.text.split(" ", 1)[0], block.pages) for block in made] == [
        ("The", (1, 1)), ("A", (1, 2)), ("Second", (2, 2)), ("Third", (3, 3))]
    assert made[0].text.endswith("and the ferry stops.")
    assert made[1].text == ("A well-known pilot lives above the bakery with a cat, a dog and the well-known bird that "
                            "cannot sing any more, as it is old.")
    assert counts == {"pages": 4, "pages-without-text": 1, "running-lines": 6, "hyphens-joined": 1}


def test_a_pdf_without_a_password_to_open_it_is_read(tmp_path: Path) -> None:
    assert blocks(tmp_path / "a.pdf", encrypted(pdf([["Nobody may print this."]]), "")) == [
        Block("Nobody may print this.", pages=(1, 1))]


def test_rows_of_a_table_are_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufefftitle,body,\nOne,"two\nlines",\n,,\nA,B,C,D\nX,,\n', encoding="utf-8")
    made = parts(path)
    assert [(part.row, part.text) for part in made if isinstance(part, Part)] == [
        (1, "title: One\nbody: two\nlines"), (4, "title: X")]
    assert [part.slug for part in made if isinstance(part, RowError)] == ["empty", "cells-differ"]
    made = parts(path, text="{title} {{says}} {body}")
    assert [part.text for part in made if isinstance(part, Part)] == ["One {says} two\nlines", "X {says}"]
    tabs = tmp_path / "a.tsv"
    tabs.write_text("a\tb\n1\t2\n")
    assert [part.text for part in parts(tabs) if isinstance(part, Part)] == ["a: 1\nb: 2"]


def test_a_table_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "cell\n" * 200_000, encoding="utf-8")
    entry = Documents(path=str(path))
    rows = parts_of(DocumentFile("a.csv", str(path), entry), 10, Counter())
    first = next(rows)
    assert isinstance(first, Part)
    assert first.row == 1, "over the limit of files that are read whole"
    rows.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "data", "slug", "detail"), [
    ("a.txt", b" \n", "empty", None),
    ("a.txt", "übel".encode("latin-1"), "encoding", "say `encoding`"),
    ("a.txt", "ab".encode("utf-16-le"), "encoding", "NUL"),
    ("a.txt", b"x" * (LIMIT + 1), "too-large", "1 MiB"),
    ("a.csv", "n\nübel\n".encode("latin-1"), "encoding", None),
    ("a.csv", b'n\n"never ends\n', "broken", "line"),
    ("a.csv", b"", "empty", None),
    ("a.html", b"<html><script>x()</script></html>", "no-text", None),
    ("a.html", "<p>übel</p>".encode("latin-1"), "encoding", None),
    ("a.html", b'<meta charset="nonsense"><p>x</p>', "encoding", "nonsense"),
    ("a.pdf", b"%PDF-1.4 nothing more", "broken", None),
    ("a.pdf", b"no pdf at all", "broken", None),
    ("a.docx", b"PK\x03\x04broken", "broken", None),
    ("a.docx", b"\xd0\xcf\x11\xe0" + b"\0" * 600, "encrypted", "password"),
    ("a.docx", b"no zip", "broken", None),
    ("a.doc", b"x", "unknown-ending", "save it as .docx"),
    ("a", b"x", "unknown-ending", "none"),
])
def test_a_file_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, data: bytes, slug: str, detail: str | None
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RowError, match=detail) as error:
        parts(tmp_path / name)
    assert error.value.slug == slug


def test_a_scanned_pdf_says_its_pages(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[], [], []]))
    with pytest.raises(RowError, match="3 pages, no text; it needs OCR") as error:
        parts(tmp_path / "a.pdf")
    assert error.value.slug == "no-text"


def test_an_encrypted_pdf_is_no_broken_one(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(encrypted(pdf([["secret"]]), "xyz"))
    with pytest.raises(RowError, match="password") as error:
        parts(tmp_path / "a.pdf")
    assert error.value.slug == "encrypted"


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RowError, match="'c' is none of the columns a, b"):
        parts(tmp_path / "a.csv", text="{a} {c}")


def test_another_encoding_is_read_where_it_is_said(tmp_path: Path) -> None:
    assert blocks(tmp_path / "a.txt", "港口".encode("gb18030"), encoding="gb18030") == [Block("港口")]
    assert blocks(tmp_path / "b.txt", "\ufeff港口".encode("utf-16-le")) == [Block("港口")]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        parts(tmp_path / "none.txt")
