"""`data show` and `data stats`: rows of a file, or of a run's train stage, as the model will see them.

    kubealign data show rows.jsonl --tokenizer ./my-model --template chatml
    kubealign data stats my-run.yaml --stage sft --max-length 1024

Makes nothing: of a run the rows and the model that are finished are looked at.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from alignment.cli.options import Overrides, ProfileName, load
from alignment.cli.show import count, debuggable, out, prose, say, table
from alignment.errors import ConfigError, DataError
from alignment.records import Message, Record

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.config import TrainBase
    from alignment.training.looked_at import Looked, Sequence

app = typer.Typer(help="Look at rows as the model will see them.", no_args_is_help=True)
BY_TYPE = {"preference": "dpo", "unpaired": "kto"}
"""Method that a file's rows are shown for where none is named; sft for all others."""
_LEARNED, _OTHER = "bold green", "dim"
_MARKS = ("\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}", "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}")
"""Around what is learned, where there are no colours."""
_BAR = 40

File = Annotated[str, typer.Argument(metavar="FILE", help="A data file, or a run file with --stage.")]
Stage = Annotated[str | None, typer.Option("--stage", help="Of a run file: this train stage's rows, for its model; or "
                                                          "what a stage has made (import, generate, sample).")]
Format = Annotated[str | None, typer.Option("--format", help="The file's format, as in a run file. Default: the one "
                                                             "that reads its first rows.")]
Columns = Annotated[list[str] | None, typer.Option("--column", metavar="FIELD=COLUMN",
                                                   help="With --format columns: prompt=Question, ...")]
System = Annotated[str | None, typer.Option("--system", help="System message before every prompt that has none.")]
Method = Annotated[Literal["sft", "reward", "dpo", "kto", "orpo"] | None, typer.Option(
    "--method", help="What the rows would be learned by. Default: sft; dpo for preferences, kto for unpaired rows.")]
Loss = Annotated[str | None, typer.Option("--loss", help="With sft: completion, assistant or all.")]
Tokenizer = Annotated[str | None, typer.Option("--tokenizer", metavar="MODEL",
                                               help="A model folder, a GGUF file, or a repository of the hub.")]
Template = Annotated[str | None, typer.Option("--template", help="A shipped template (kubealign templates).")]


@dataclass
class _Source:
    """Rows to look at, and what is needed to look at them.

    Attributes:
        bad: reason -> rows that cannot be read, counted while `records` is gone through.
        stage: None: there is no tokenizer, so texts alone are shown.
    """

    records: Iterable[Record]
    tokenizer: Any = None
    stage: TrainBase | None = None
    bad: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def looked(self) -> Iterator[Looked]:
        from alignment.training.looked_at import look

        assert self.stage is not None
        return look(self.records, self.tokenizer, self.stage)


def show(
    file: File, stage: Stage = None, format: Format = None, columns: Columns = None, system: System = None,
    method: Method = None, loss: Loss = None, tokenizer: Tokenizer = None, template: Template = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows, from the first.")] = 3,
    id: Annotated[str | None, typer.Option("--id", help="The row of this id alone.")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Each token on a line: its id, whether it is learned.")] = False,
    profile: ProfileName = None, overrides: Overrides = None,
) -> None:
    """Rows as the model sees them, with what is learned in colour; without a tokenizer their turns as texts."""
    source = _source(file, stage, format, columns, system, method, loss, tokenizer, template, profile, overrides)
    if ids and source.stage is None:
        raise ConfigError("ids need a tokenizer", where="--ids", expected="--tokenizer MODEL")
    prose(source.note)
    if source.stage is not None and not ids and not out().is_terminal:
        say(f"learned: {_MARKS[0]}so{_MARKS[1]}")
    shown = 0
    for record, looked in _pairs(source):
        if id is not None and record.id != id:
            continue
        say()
        _show_texts(record) if looked is None else _show_looked(looked, source, ids)
        shown += 1
        if shown == (1 if id is not None else rows):
            break
    if id is not None and not shown:
        raise DataError("no row has this id", where=file, found=id, expected="an id as `data show` prints it")
    if not shown:
        raise DataError("no row can be read", where=file, found=dict(source.bad))
    if source.bad:
        say()
        say(f"{sum(source.bad.values())} of the rows read so far cannot be used: {_told(source.bad)}")


def stats(
    file: File, stage: Stage = None, format: Format = None, columns: Columns = None, system: System = None,
    method: Method = None, loss: Loss = None, tokenizer: Tokenizer = None, template: Template = None,
    max_length: Annotated[int | None, typer.Option(
        "--max-length", min=1, help="Say what this limit would cut. Default: of a run the stage's.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg",
                                                 help="Write the histogram as a picture as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    profile: ProfileName = None, overrides: Overrides = None,
) -> None:
    """Token lengths: thresholds, quantiles, a histogram, the share that is learned, and what a limit would cut."""
    from alignment.data.token_lengths import bins, limited, summary

    source = _source(file, stage, format, columns, system, method, loss, tokenizer, template, profile, overrides)
    if source.stage is None:
        raise ConfigError("lengths are counted in tokens", where="data stats", expected="--tokenizer MODEL, and with "
                          "--template NAME the chat template where the model has none")
    limit = max_length or (source.stage.longest if stage is not None else None)
    source.stage = source.stage.model_copy(update={"max_length": _no_limit(), "too_long": "drop"})
    lengths: list[int] = []
    learned: list[int] = []
    unused: Counter[str] = Counter()
    read = 0
    for looked in source.looked():
        read += 1
        if looked.reason is not None:
            unused[looked.reason] += 1
        lengths += [len(sequence.ids) for sequence in looked.sequences]
        learned += [sum(sequence.learned) for sequence in looked.sequences]
    if not lengths:
        raise DataError("no row can be used", where=file, found={**source.bad, **unused}, expected=source.stage.reads)
    figures, cut = summary(lengths, learned), None if limit is None else limited(lengths, learned, limit)
    edges, counts = bins(lengths)
    if picture is not None:
        _draw(picture, edges, counts)
    if as_json:
        print(json.dumps({
            "rows": read, "bad": dict(source.bad), "unused": dict(unused), **figures.to_json(),
            "limit": None if cut is None else vars(cut), "histogram": {"edges": edges, "counts": counts}}))
        return
    prose(source.note)
    say(f"{read} rows, {figures.sequences} sequences, {count(figures.tokens)} tokens, "
        f"{figures.learned / figures.tokens:.1%} of them learned")
    say(f"tokens of a sequence: mean {figures.mean:.1f}, "
        + ", ".join(f"{share:.0%} {length}" for share, length in figures.quantiles.items())
        + f", longest {figures.longest}")
    for title, reasons in (("cannot be read", source.bad), (f"cannot serve {source.stage.method}", unused)):
        if reasons:
            say(f"{sum(reasons.values())} rows {title}: {_told(reasons)}")
    if figures.above:
        say()
        table(("longer than", "sequences", "share"),
              [[str(size), str(over), f"{over / figures.sequences:.1%}"] for size, over in figures.above.items()],
              right=("longer than", "sequences", "share"))
    say()
    top = max(counts)
    table(("tokens", "sequences", ""), [
        [f"{low} to {high - 1}" if high - low > 1 else str(low), str(many), "#" * -(-many * _BAR // top)]
        for low, high, many in zip(edges, edges[1:], counts, strict=False)], right=("tokens", "sequences"))
    if cut is not None:
        say()
        say(f"max_length {cut.tokens}: {cut.over} of {figures.sequences} sequences are longer. too_long: drop loses "
            f"them; truncate-prompt cuts {count(cut.tokens_cut)} tokens of prompts and loses {cut.answers_over}.")
    if picture is not None:
        say(f"wrote {picture}")


def _source(
    file: str, stage: str | None, format: str | None, columns: list[str] | None, system: str | None,
    method: str | None, loss: str | None, tokenizer: str | None, template: str | None, profile: str | None,
    overrides: list[str] | None,
) -> _Source:
    if file.endswith((".yaml", ".yml")):
        of_file = {"--format": format, "--column": columns, "--system": system, "--method": method, "--loss": loss,
                   "--tokenizer": tokenizer, "--template": template}
        if given := [option for option, value in of_file.items() if value is not None]:
            raise ConfigError("the run file says this itself", where=given[0], found=file,
                              expected=f"no {given[0]}; --set changes a key")
        return _of_run(file, stage, profile, overrides)
    of_run = {"--stage": stage, "--profile": profile, "--set": overrides}
    if given := [option for option, value in of_run.items() if value]:
        raise ConfigError("is for run files", where=given[0], found=file, expected="RUN.yaml")
    if template is not None and tokenizer is None:
        raise ConfigError("a template needs the tokenizer it is for", where="--template", found=template,
                          expected="--tokenizer MODEL")
    return _of_file(file, format, columns, system, method, loss, tokenizer, template)


def _of_file(
    file: str, format: str | None, columns: list[str] | None, system: str | None, method: str | None, loss: str | None,
    tokenizer: str | None, template: str | None,
) -> _Source:
    from alignment.records.importers import FORMATS, BadRow, Options, read_source
    from alignment.records.importers.fitting import fitting

    mapped = _mapped(columns)
    options = Options(system)
    if format is not None and format not in (*FORMATS, "columns"):
        raise ConfigError("no such format", where="--format", found=format,
                          expected="one of " + ", ".join((*FORMATS, "columns")))
    chosen = format or ("columns" if mapped else fitting(file, options))
    bad: Counter[str] = Counter()

    def records() -> Iterator[Record]:
        for row in read_source(file, chosen, "row", options, mapped):
            if isinstance(row, BadRow):
                bad[row.slug] += 1
            else:
                yield row

    rows = records()
    first = next(rows, None)
    whole = rows if first is None else itertools.chain([first], rows)
    said = f"{file}: format {chosen}" + ("" if format or mapped else ", which reads its first rows")
    if tokenizer is None:
        return _Source(whole, bad=bad, note=said)
    from alignment.training.looked_at import opened, to_look

    method = method or BY_TYPE.get("" if first is None else first.type, "sft")
    looks = to_look(method, loss, None)
    found = opened(tokenizer, template, "--tokenizer" if template is None else f"--template {template}")
    return _Source(whole, found, looks, bad, f"{said}; {_as(looks)}")


def _of_run(file: str, name: str | None, profile: str | None, overrides: list[str] | None) -> _Source:
    from alignment.artifacts import Store
    from alignment.config import as_train
    from alignment.config.arithmetic import settled_here
    from alignment.pipeline.keys import keys

    run, place = load(file, overrides, profile)
    run = settled_here(run if place is None else place.applied(run))
    if name in {item.name for item in run.stages if item.makes == "rows"}:
        return _made(file, str(name), Store(run.store).find(keys(run)[str(name)].key))
    trained = {item.name: stage for item in run.stages if (stage := as_train(item)) is not None}
    if name not in trained:
        raise ConfigError("no stage of this name that trains or makes rows", where="--stage", found=name,
                          expected="one of " + ", ".join(item.name for item in run.stages
                                                         if item.name in trained or item.makes == "rows"))
    stage, store, known = trained[name], Store(run.store), keys(run)
    needed = {ref: ref.split("/")[0] for ref in stage.rows}
    found = {one: store.find(known[one].key) for one in {stage.model, *needed.values()}}
    if missing := sorted(one for one, artifact in found.items() if artifact is None):
        raise ConfigError("what the stage reads is not finished", where=f"stage {name}", found=", ".join(missing),
                          hint=f"kubealign run {file} --stage {missing[0]}")
    from alignment.inference.draws import choose_of
    from alignment.records import each_line, each_record
    from alignment.training.looked_at import of_model

    paths = {one: artifact.path() for one, artifact in found.items() if artifact is not None}
    files = {ref: paths[one] / "rows" / f"{ref.split('/')[1]}.jsonl" for ref, one in needed.items()}
    there = [file for file in files.values() if file.exists()]
    take, of = run.scaled(stage.take), sum(1 for file in there for _ in each_line(file))
    drawn, _ = choose_of(lambda: itertools.chain.from_iterable(map(each_record, there)), take, run.seed)
    note = f"stage {name}: {of if take is None else min(take, of)} of {of} rows of {', '.join(files)}; {_as(stage)}"
    return _Source(drawn, of_model(paths[stage.model]), stage, note=note)


def _made(file: str, name: str, artifact: Artifact | None) -> _Source:
    """All rows that a finished stage has written."""
    from alignment.records import each_record

    if artifact is None:
        raise ConfigError("the stage is not finished", where=f"stage {name}",
                          hint=f"kubealign run {file} --stage {name}")
    rows = artifact.manifest.rows
    files = [artifact.path() / "rows" / f"{split}.jsonl" for split, many in rows.written.items() if many]
    records = itertools.chain.from_iterable(each_record(one) for one in files if one.exists())
    return _Source(records, note=f"stage {name}: {rows.written} of {rows.read}; left out {rows.dropped or 'none'}")


def _mapped(columns: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in columns or ()]
    for text, (name, equals, column) in zip(columns or (), pairs, strict=True):
        if not (name and equals and column):
            raise ConfigError("is no FIELD=COLUMN", where="--column", found=text, expected="prompt=Question")
    return {name: column for name, _, column in pairs}


def _as(stage: TrainBase) -> str:
    loss = getattr(stage, "loss", None)
    return f"as {stage.method}" + (f", loss: {loss}" if isinstance(loss, str) else "") + " learns them"


def _no_limit() -> int:
    from alignment.training.looked_at import WITHOUT_LIMIT

    return WITHOUT_LIMIT


def _pairs(source: _Source) -> Iterator[tuple[Record, Looked | None]]:
    if source.stage is None:
        return ((record, None) for record in source.records)
    return ((looked.record, looked) for looked in source.looked())


def _told(reasons: Counter[str]) -> str:
    return ", ".join(f"{many} {reason}" for reason, many in reasons.most_common())


def _show_texts(record: Record) -> None:
    """Turns as texts, for want of a tokenizer."""
    say(f"{record.id}  ({record.type})")
    ends: list[Message] = [{"role": role, "content": text} for role, text in (
        ("completion" if record.rejected is None else "chosen", record.completion), ("rejected", record.rejected),
    ) if text is not None]
    for turn in [*record.messages, *record.prompt, *ends]:
        out().print(Text.assemble((f"{turn['role']}: ", "bold"), str(turn["content"])), soft_wrap=True)
        for key in sorted(turn.keys() - {"role", "content"}):
            out().print(Text(f"  {key}: {json.dumps(turn[key], ensure_ascii=False)}"), soft_wrap=True)
    if record.label is not None:
        say(f"label: {record.label}")
    if record.type == "passage":
        out().print(Text(str(record.meta["passage"])), soft_wrap=True)
    for key in ("document", "origin", "similar"):
        if key in record.meta:
            out().print(Text(f"  {key}: {json.dumps(record.meta[key], ensure_ascii=False)}"), soft_wrap=True)


def _show_looked(looked: Looked, source: _Source, ids: bool) -> None:
    """A row's sequences, or why it cannot serve."""
    record = looked.record
    if looked.reason is not None:
        say(f"{record.id}  ({record.type})  left out: {looked.reason}")
        return
    for sequence in looked.sequences:
        name = f"  {sequence.name}" if sequence.name else ""
        say(f"{record.id}  ({record.type}){name}  {len(sequence.ids)} tokens, {sum(sequence.learned)} learned")
        if ids:
            _show_ids(sequence, source.tokenizer)
        else:
            out().print(_painted(sequence, source.tokenizer), soft_wrap=True)


def _painted(sequence: Sequence, tokenizer: Any) -> Text:
    """The text of the ids, special tokens as they are written; what is learned in colour, or between marks."""
    marked = not out().is_terminal
    text = Text()
    for learned, run in itertools.groupby(zip(sequence.ids, sequence.learned, strict=True), key=lambda pair: pair[1]):
        piece = tokenizer.decode([token for token, _ in run], skip_special_tokens=False,
                                 clean_up_tokenization_spaces=False)
        text.append(f"{_MARKS[0]}{piece}{_MARKS[1]}" if learned and marked else piece,
                    _LEARNED if learned else _OTHER)
    return text


def _show_ids(sequence: Sequence, tokenizer: Any) -> None:
    pieces = tokenizer.convert_ids_to_tokens(sequence.ids)
    table(("place", "id", "learned", "token"),
          [[str(place), str(token), "x" if learned else "", json.dumps(piece, ensure_ascii=False)]
           for place, (token, learned, piece) in enumerate(zip(sequence.ids, sequence.learned, pieces, strict=True))],
          right=("place", "id"))


def _draw(file: Path, edges: list[int], counts: list[int]) -> None:
    from alignment.report.charts import lengths_picture

    try:
        file.write_text(lengths_picture(edges, counts), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(file)) from error


app.command("show")(debuggable(show))
app.command("stats")(debuggable(stats))
