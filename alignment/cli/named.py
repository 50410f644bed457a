"""MODEL and FILE of a command line without a run file -> the import stages that bring them, as a run file has them.

A model is an artifact (a key, RUN:STAGE, RUN.yaml:STAGE, its folder), a folder that transformers, TRL, PEFT, Axolotl or
LLaMA-Factory left, a GGUF file, a name of the hub, or an endpoint. Looks at names and headers of files; loads no model.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.config.stages.artifact import KEY, RUN_STAGE
from alignment.config.stages.fields import on_this_machine
from alignment.data.model_files import ADAPTER, tensor_types
from alignment.errors import ConfigError

Tree = dict[str, Any]
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MODEL = ("an artifact's key (sft-86ea8fe7c8a6, as `kubealign models` lists them), RUN:STAGE, RUN.yaml:STAGE, a "
          "model's or adapter's folder, a GGUF file, OWNER/NAME of the hub, or an endpoint (https://host/v1#MODEL)")
_RUN_FILE = re.compile(r".+\.ya?ml(:.*)?|https?://.+")


@dataclass
class Named:
    """The import stages of a command line, each with a name of its own.

    Attributes:
        store: where artifacts are looked for.
        template: a shipped chat template for models that are imported anew.
        base: of adapters whose files do not say where it is.
    """

    store: str
    template: str | None = None
    base: str | None = None
    stages: list[Tree] = field(default_factory=list)

    def model(self, text: str, role: str | None = None, *, is_base: bool = False) -> str:
        """Name of the stage that brings the model; its stages are in `stages`.

        Args:
            is_base: it is there for an adapter alone, whose own template counts.

        Raises:
            ConfigError: nothing is called so, or it cannot be told what it is.
        """
        for stage in self.stages:
            if stage.get("_said") == (text, role):
                return str(stage["name"])
        path = on_this_machine(text)
        if text.strip() and path.is_dir():
            return self._folder(path, text, role, is_base=is_base)
        if path.is_file() and path.suffix == ".gguf":
            return self._add(path.stem, {"source": "gguf", "file": text}, (text, role), role)
        if (found := _artifact(text, self.store)) is not None:
            return self._artifact(found, (text, role), role, is_base=is_base)
        if _RUN_FILE.fullmatch(text):
            return self._elsewhere(text, role, is_base=is_base)
        if _HUB.fullmatch(text) and text[0] not in ".~":
            return self._add(text.rpartition("/")[2], {"source": "hub", "repo": text}, (text, role), role)
        raise ConfigError("nothing is called so", where="MODEL", found=text, expected=_MODEL,
                          hint=f"there is no folder at {path.absolute()}" if "/" in text else None)

    def _elsewhere(self, text: str, role: str | None, *, is_base: bool) -> str:
        """What a stage of a run file made, or an endpoint."""
        from alignment.config import EndpointModel
        from alignment.pipeline.named import named

        found = named(text, makes=("reward" if role == "reward" else "policy",))
        if isinstance(found, EndpointModel):
            if role is not None or is_base:
                raise ConfigError("is an endpoint, which only answers", where="MODEL", found=text, expected="a model")
            return self._add(found.model, found.model_dump(mode="json", exclude_unset=True), (text, role), None,
                             templated=False)
        if isinstance(found, Path):
            return self._folder(found, text, role, is_base=is_base)
        model = {"source": "artifact", "artifact": found.key}
        own = found.store.url in (self.store.rstrip("/"), str(on_this_machine(self.store).absolute()))
        model |= {} if own else {"store": found.store.url}
        return self._artifact(model, (text, role), role, is_base=is_base, called=_plain(text))

    def _folder(self, path: Path, text: str, role: str | None, *, is_base: bool) -> str:
        if (found := _artifact(str(path.absolute()), self.store)) is not None and (
                Path(path.parent if path.name == "model" else path, "manifest.json").is_file()):
            return self._artifact(found, (text, role), role, is_base=is_base)
        if not (path / ADAPTER).is_file() or _whole(path):
            return self._add(_stem(path), {"source": "folder", "path": text}, (text, role), role, dtype=stored_as(path),
                             special_tokens_in_text=_told(path))
        if role is not None:
            raise ConfigError("an adapter as a reward model is not read from a folder", where="MODEL", found=text,
                              expected="a whole classifier, or the artifact of a reward stage",
                              hint="merge it into its base with PEFT, and name the merged folder")
        base = self._base(path, text)
        return self._add(_stem(path), {"source": "folder", "path": text, "base": base}, (text, role), role,
                         special_tokens_in_text=_told(path))

    def _base(self, path: Path, text: str) -> str:
        """Name of the stage that brings what an adapter stands on, as its config says it or --base."""
        try:
            config = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
            said = config.get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"the adapter's config cannot be read: {error}", where=str(path / ADAPTER)) from error
        found = self.base or said
        if not isinstance(found, str) or not found:
            raise ConfigError("the adapter does not say what it was trained on", where=str(path / ADAPTER),
                              found=f"base_model_name_or_path: {said!r}", expected="--base MODEL")
        there = on_this_machine(found).is_dir() or KEY.fullmatch(found) or RUN_STAGE.fullmatch(found)
        if not there and not (_HUB.fullmatch(found) and found[0] not in ".~"):
            raise ConfigError("the adapter's base is not there", where="MODEL" if self.base is None else "--base",
                              found=f"{text} stands on {found}", expected="a folder on this machine, or a hub name",
                              hint="--base MODEL says where it is now")
        return self.model(found, is_base=True)

    def _artifact(self, model: Tree, said: tuple[str, str | None], role: str | None, *, is_base: bool,
                  called: str | None = None) -> str:
        if self.template is not None and not is_base:
            raise ConfigError("an artifact keeps its chat template", where="--template", found=self.template,
                              expected=f"nothing, with {said[0]}")
        return self._add(called or _called(model["artifact"]), model, said, role, templated=False)

    def _add(self, called: str, model: Tree, said: tuple[str, str | None], role: str | None, *,
             templated: bool = True, **keys: str | None) -> str:
        name = self.free(called)
        keys = {"role": role, "template": self.template if templated else None, **keys}
        given = {key: value for key, value in keys.items() if value is not None}
        self.stages.append({"name": name, "kind": "import", "model": model, **given, "_said": said})
        return name

    def free(self, called: str) -> str:
        """A stage's name like `called` that no other stage has."""
        taken = {stage["name"] for stage in self.stages} | {"reference", "eval", "data", "answers", "export"}
        plain = stage_name(called)
        return next(name for name in _numbered(plain) if name not in taken)

    def rows(self, text: str, name: str, **source: Any) -> tuple[Tree, str]:
        """(the stage that brings rows of a file or of another run, the name of its row set)."""
        above, _, split = text.rpartition("/")
        if not on_this_machine(text).exists() and (found := _artifact(above, self.store)) is not None:
            if source:
                raise ConfigError("rows of a run are rows already", where="--data",
                                  found=", ".join(f"--{key}" for key in source), expected=f"nothing of it, with {text}")
            return {"name": name, "kind": "import", "rows": {"artifact": found["artifact"], "splits": [split]}}, split
        return {"name": name, "kind": "import", "data": [{"path": text, **source}],
                "split": {"by": "ratio", "ratios": {"all": 1.0}}}, "all"

    def written(self) -> list[Tree]:
        """The stages, as a run file has them."""
        return [{key: value for key, value in stage.items() if key != "_said"} for stage in self.stages]


def _artifact(text: str, store: str) -> Tree | None:
    """`model` of an import of an artifact; None where a text is none's name. One of `store` is named without it."""
    plain = text.rstrip("/").removesuffix("/model")
    above, _, key = plain.rpartition("/")
    if not above:
        return {"source": "artifact", "artifact": text} if KEY.fullmatch(text) or RUN_STAGE.fullmatch(text) else None
    if not KEY.fullmatch(key) or not above.endswith("/artifacts"):
        return None
    other = above.removesuffix("/artifacts")
    own = other == store.rstrip("/") or ("://" not in other + store and on_this_machine(other).absolute().resolve()
                                         == on_this_machine(store).absolute().resolve())
    return {"source": "artifact", "artifact": key if own else plain}


def _called(text: str) -> str:
    found = RUN_STAGE.fullmatch(text)
    return f"{found[1]}-{found[2]}" if found else text.rpartition("/")[2]


def _plain(text: str) -> str:
    """`a/qa.yaml:dpo` -> `qa-dpo`."""
    file, _, stage = text.rpartition(":") if ":" in text else (text, "", "")
    return f"{Path(file).stem}-{stage}"


def _stem(path: Path) -> str:
    whole = path.absolute()
    return f"{whole.parent.name}-{whole.name}" if re.fullmatch(r"checkpoint-[0-9]+|model|merged", whole.name) else (
        whole.name)


def stage_name(text: str) -> str:
    """A text as a stage or run may be called."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
    return (plain if plain[0].isalpha() else f"m-{plain}")[:36].rstrip("-")


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in range(2, 1000))


def _whole(folder: Path) -> bool:
    """Whether there are weights beside an adapter's: the import says what is wrong with that."""
    return any(path.name != "adapter_model.safetensors" for path in folder.glob("*.safetensors"))


def _told(folder: Path) -> str | None:
    """What a folder that was exported from here says of texts that spell special tokens."""
    try:
        said = json.loads((folder / "kubealign.json").read_text(encoding="utf-8")).get("special_tokens_in_text")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(folder / "kubealign.json")) from error
    return None if said is None else str(said)


def stored_as(folder: Path) -> str | None:
    """What the weights of a folder are stored as, so that an import rounds nothing; None: it does not show."""
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            found |= tensor_types(file)
        except (OSError, ValueError, KeyError, struct.error):
            return None
    known = {"BF16": "bfloat16", "F16": "float16"}
    floats = {name for name in found if name.startswith(("F", "BF"))}
    return known.get(next(iter(floats)), "float32") if len(floats) == 1 else "float32" if floats else None


def columns_of(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answer` -> our field -> the file's column."""
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    if any(not equals or not name.strip() or not column.strip() for name, equals, column in pairs):
        raise ConfigError("not pairs of a field and a column", where="--columns", found=text,
                          expected="prompt=COLUMN,completion=COLUMN")
    return {name.strip(): column.strip() for name, _, column in pairs}
