"""kubealign.json: what a model folder is (policy or reward, full or adapter, on which base, with which template),
and how its texts are read (templates.Convention).

Reads and writes that file and finds the folder with the full weights; loads no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment import templates
from alignment.artifacts import Artifact
from alignment.errors import ModelError
from alignment.planner.context_length import of_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INFO = "kubealign.json"


def write_info(
    model_dir: Path,
    *,
    role: str,
    form: str,
    base: str | None,
    tokenizer: PreTrainedTokenizerBase,
    template_name: str | None = None,
    quantisation: str | None = None,
) -> dict[str, Any]:
    """Write kubealign.json beside the weights and return what it says.

    Args:
        role: policy or reward.
        form: full or adapter.
        base: key of the artifact whose full weights an adapter stands on.
        quantisation: what those weights were rounded to when the adapter was trained; None: nothing.
        template_name: default: the shipped template with this text, else "own".
    """
    text = str(tokenizer.get_chat_template())
    info = {
        "role": role, "form": form, "base": base, "quantisation": quantisation,
        "template": {"name": template_name or templates.name_of(text), "hash": templates.template_hash(text)},
        **templates.Convention.of(tokenizer).to_json(),
    }
    (model_dir / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return info


def read_info(model_dir: Path) -> dict[str, Any]:
    """kubealign.json of a model folder. Raises ModelError when it is missing or broken."""
    try:
        info = json.loads((model_dir / INFO).read_text(encoding="utf-8"))
        _ = info["role"], info["form"], info["base"], info["template"]["name"], info["template"]["hash"]
        templates.Convention.from_json(info)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"no usable {INFO}: {error}", where=str(model_dir),
                         expected="a model folder made by an import or train stage") from error
    return dict(info)


def model_info(artifact: Artifact) -> dict[str, Any]:
    """{"role", "form", "base", "quantisation", "template": {"name", "hash"}} of an artifact's model."""
    return read_info(artifact.path() / "model")


def quantisation_of(artifact: Artifact) -> str | None:
    """What the full weights below an artifact's adapter are rounded to, `nf4-double` or nothing: part of what the
    adapter was trained over, so of what it is computed over. Older artifacts say nothing, and were over no such."""
    found = model_info(artifact).get("quantisation")
    if found not in (None, "nf4-double"):
        raise ModelError("the adapter stands on weights of a form that this version does not know",
                         where=artifact.url, found=found, expected="nf4-double or null",
                         hint="a newer version made it")
    return found


def role_of(artifact: Artifact) -> str:
    """policy, reward or embedder. Raises ModelError where the folder does not say; models without a chat template say
    this too."""
    folder = artifact.path() / "model"
    try:
        return str(json.loads((folder / INFO).read_text(encoding="utf-8"))["role"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"no usable {INFO}: {error}", where=str(folder),
                         expected="a model folder made by an import or train stage") from error


def template_of(artifact: Artifact) -> dict[str, str]:
    """{"name", "hash"} of the chat template that an artifact's model was made with."""
    return dict(model_info(artifact)["template"])


def base_key(artifact: Artifact) -> str:
    """Key of the artifact with the full weights: its own, or the one its adapter stands on."""
    info = model_info(artifact)
    return artifact.key if info["form"] == "full" else str(info["base"])


def base_artifact(artifact: Artifact) -> Artifact:
    """The artifact with the full weights of `artifact`. Raises ModelError when the base is gone."""
    key = base_key(artifact)
    if key == artifact.key:
        return artifact
    base = artifact.store.find(key)
    if base is None:
        raise ModelError("the full weights that the adapter stands on are not in the store", where=artifact.url,
                         found=key, expected=f"an artifact at {artifact.store.url_of(f'artifacts/{key}')}",
                         hint="run the stage that makes it again")
    if model_info(base)["form"] != "full":
        raise ModelError("an adapter stands on another adapter", where=artifact.url, found=key,
                         expected="an import-model or full-training artifact")
    return base


def base_folder(artifact: Artifact) -> Path:
    """Local model folder with the full weights of `artifact`. Raises ModelError when the base is gone."""
    return base_artifact(artifact).path() / "model"


def context_length(artifact: Artifact) -> int | None:
    """Tokens that a policy can tell the places of: as its import or its base's recorded it, else by its config."""
    base = base_artifact(artifact)
    recorded = (one.manifest.facts.get("context_length") for one in (artifact, base))
    return next((int(length) for length in recorded if length), None) or of_folder(base.path() / "model")


def check_template(artifact_dir: Path) -> None:
    """Raise ModelError when the chat template is not the one the model was trained with.

    Args:
        artifact_dir: an artifact's folder, or the model folder in it.
    """
    folder = artifact_dir / "model" if (artifact_dir / "model").is_dir() else artifact_dir
    expected, path = read_info(folder)["template"], folder / "chat_template.jinja"
    found = templates.template_hash(path.read_text(encoding="utf-8")) if path.exists() else "no file"
    if found != expected["hash"]:
        raise ModelError("the chat template is not the one this model was made with", where=str(path), found=found,
                         expected=f"hash {expected['hash']} (template {expected['name']})",
                         hint="restore the file, or import the model again with the template you want")
