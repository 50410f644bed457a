"""LLaMA-Factory's data sets: names in dataset_info.json -> our sources (its data/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.cli.migrate.carried import Reading
from alignment.cli.migrate.target import Target

_MAPPED = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system",
           "tools": "tools"}
"""Its `columns` -> fields of our alpaca rows."""
_PLAIN_TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
               "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
_OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                "observation_tag": "tool", "function_tag": "function", "system_tag": "system"}
_MEDIA = ("images", "videos", "audios")


class _Refused(Exception):
    """A data set has no counterpart here."""


def datasets(read: Reading, into: Target, infos: Mapping[str, Any] | None, found: str | None) -> bool:
    """Fill in the sources; whether rows may have several turns of the assistant."""
    names = read.words("dataset", "data.data")
    named = read.word("dataset_dir", "data.data", "where its dataset_info.json lies, and files beside that") or "data"
    folder = found or named
    take = read.whole("max_samples", "data.data.take", "so many of each, drawn with the run's seed; LLaMA-Factory "
                                                       "takes the first")
    lost, several = [], False
    for name in names:
        info = (infos or {}).get(name)
        try:
            source, turns = _source(name, info, folder, into.method, into)
        except _Refused as error:
            lost.append(f"{name}: {error}")
            continue
        several |= turns
        into.sources.append({**source, **({} if take is None else {"take": take})})
    if names and infos is None:
        read.correct("dataset", "data.data", f"no dataset_info.json lies in {folder}, so paths and formats are "
                                             "guesses: correct them")
    elif lost:
        read.correct("dataset", "data.data" if into.sources else None, "; ".join(lost))
    return several


def _source(name: str, info: Any, folder: str, method: str, into: Target) -> tuple[dict[str, Any], bool]:
    """(source, whether a row may have several turns of the assistant)"""
    if info is None:
        guess = {"sft": "alpaca", "kto": "unpaired", "ppo": "prompt-only"}.get(method, "preference")
        if "/" in name and "." not in name.rsplit("/", 1)[-1]:
            return {"hub": name, "split": "train", "format": guess}, False
        return {"path": f"{folder.rstrip('/')}/{name}.json", "format": guess}, False
    if not isinstance(info, Mapping):
        raise _Refused("its entry in dataset_info.json is no mapping")
    place = _place(info, folder)
    shape, turns = _shape(info, method, into, name)
    return {**place, **shape, "name": _named(name)}, turns


def _place(info: Mapping[str, Any], folder: str) -> dict[str, Any]:
    if info.get("hf_hub_url"):
        made = {"hub": str(info["hf_hub_url"]), "split": str(info.get("split", "train"))}
        return made | ({"config": str(info["subset"])} if info.get("subset") else {})
    if info.get("file_name"):
        return {"path": f"{folder.rstrip('/')}/{info['file_name']}"}
    if info.get("script_url"):
        raise _Refused("is loaded by a script, and scripts of data sets are not run")
    raise _Refused("lies on a hub other than Hugging Face's: fetch it, and name its file as path")


def _shape(info: Mapping[str, Any], method: str, into: Target, name: str) -> tuple[dict[str, Any], bool]:
    columns = {str(ours): str(theirs) for ours, theirs in (info.get("columns") or {}).items()}
    if media := [kind for kind in _MEDIA if kind in columns]:
        raise _Refused(f"has {media[0]}, and only text is read")
    if info.get("formatting", "alpaca") in ("sharegpt", "openai"):
        return _talk(info, columns, method), True
    if info.get("formatting", "alpaca") != "alpaca":
        raise _Refused(f"has formatting {info['formatting']}, which is not alpaca, sharegpt or openai")
    if info.get("ranking"):
        return {"format": "columns", "columns": {
            **_asked(columns, into, name), "chosen": columns.get("chosen", "chosen"),
            "rejected": columns.get("rejected", "rejected")}}, False
    if "kto_tag" in columns:
        return {"format": "columns", "columns": {
            **_asked(columns, into, name), "completion": columns.get("response", "output"),
            "label": columns["kto_tag"]}}, False
    into.said.append(f"{name}: instruction and input stand a blank line apart; LLaMA-Factory's a line")
    fields = {_MAPPED[key]: column for key, column in columns.items() if key in _MAPPED}
    if all(ours == theirs for ours, theirs in fields.items()):
        return {"format": "alpaca"}, "history" in fields
    mapped = {"instruction": "instruction", "output": "output", **({} if columns else {"input": "input"}), **fields}
    return {"format": "columns", "columns": mapped}, "history" in fields


def _asked(columns: Mapping[str, str], into: Target, name: str) -> dict[str, str]:
    """The prompt of a row whose instruction and input are two columns."""
    prompt, system = columns.get("prompt", "instruction"), columns.get("system")
    made = {"prompt": prompt} if "query" not in columns and columns else {
        "prompt": f"{{{prompt}}}\n{{{columns.get('query', 'input')}}}"}
    if "\n" in made["prompt"]:
        into.said.append(f"{name}: a row whose {columns.get('query', 'input')} is blank is a bad row here; put such "
                         f"rows into a file of their own with `prompt: {prompt}`")
    if "history" in columns:
        raise _Refused("has a history beside pairs or labels; write its turns into the prompt")
    return made | ({"system": system} if system else {})


def _talk(info: Mapping[str, Any], columns: Mapping[str, str], method: str) -> dict[str, Any]:
    tags = {**_PLAIN_TAGS, **({} if info.get("formatting") != "openai" else _OPENAI_TAGS), **(info.get("tags") or {})}
    field = columns.get("messages", "messages" if info.get("formatting") == "openai" else "conversations")
    known = {key for key, value in tags.items() if value == _PLAIN_TAGS.get(key)}
    openai = {key for key, value in tags.items() if value == _OPENAI_TAGS.get(key)}
    plain = len(known) == len(tags)
    if not plain and not {"role_tag", "content_tag", "user_tag", "assistant_tag"} <= openai:
        raise _Refused(f"names its turns' parts {', '.join(f'{key} {value}' for key, value in tags.items())}, which no "
                       "format here reads")
    if "kto_tag" in columns:
        raise _Refused("is a conversation with a label: format unpaired takes {messages, label}; rename its fields")
    if info.get("ranking"):
        if not plain or (field, columns.get("chosen", "chosen"), columns.get("rejected", "rejected")) != (
                "conversations", "chosen", "rejected"):
            raise _Refused("is a conversation with two answers, with other fields than sharegpt-preference's")
        return {"format": "sharegpt-preference"}
    told = {"system": columns["system"]} if columns.get("system", "system") != "system" else {}
    if plain:
        if field != "conversations" or told:
            raise _Refused(f"has its turns under {field}: format sharegpt reads conversations, so rename the field")
        return {"format": "sharegpt"}
    return {"format": "messages"} if field == "messages" and not told else {
        "format": "columns", "columns": {"messages": field, **told}}


def _named(name: str) -> str:
    made = "".join(sign if sign.isalnum() else "-" for sign in name.lower() if sign.isascii()).strip("-")[:40]
    return made if made[:1].isalpha() else f"d-{made}"[:40].rstrip("-")
