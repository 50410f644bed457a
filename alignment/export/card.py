"""README.md of an export: a model card for people and for the hub, written from manifests and the config.

Says what is known and what is not: no licence stated, no evaluation quoted, no limits given. Invents nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from alignment.artifacts import Artifact
from alignment.config import Export
from alignment.export.compare import Compared
from alignment.export.history import History, Step, base_named, results_of

HUB_LICENCES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "c-uda", "cc",
    "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0",
    "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "mpl-2.0",
    "odc-by", "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib",
    "pddl", "deepfloyd-if-license", "apple-amlr", "apple-ascl", "fair-noncommercial-research-license", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
})
"""Licences that the hub has names for (huggingface.co/docs/hub/repositories-licenses)."""
_KEYS = ("learning_rate", "epochs", "batch_size", "max_length", "loss", "packing", "num_generations", "trl")
"""Keys of a train stage that the card names beside its strategy."""


class Card:
    """The text of a card.

    Args:
        compared: form -> how far it is from the trained model, with the bounds it was held to.
        base: what others call the base: a hub name, or None.
        source: what the forms were compared on.
    """

    def __init__(
        self, stage: Export, title: str, description: str | None, history: History,
        compared: Mapping[str, tuple[Compared, tuple[float, float]]], evaluations: Mapping[str, Artifact],
        base: str | None, source: str, over: str, files: Sequence[str],
    ) -> None:
        self.stage, self.title, self.description, self.history = stage, title, description, history
        self.compared, self.evaluations, self.base, self.source = compared, evaluations, base, source
        self.over, self.files = over, files

    def text(self, *, whole: bool) -> str:
        """The file for a folder of whole weights, or of an adapter: front matter, then Markdown."""
        head = yaml.safe_dump(self.front(whole=whole), sort_keys=False, allow_unicode=True)
        parts = ["\n".join(part) for part in (
            self._head(), self._use(whole=whole), self._results(), self._fidelity(), self._made(), self._data(),
            self._limits(), self._by())]
        return f"---\n{head}---\n" + "\n\n".join(part for part in parts if part) + "\n"

    def front(self, *, whole: bool) -> dict[str, Any]:
        """Metadata as the hub reads it (huggingface_hub.ModelCardData)."""
        stage, named = self.stage, [data.hub for data in (self.stage.datasets or {}).values() if data.hub]
        front: dict[str, Any] = {
            "library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation",
            "tags": ["kubealign", *self.history.methods, *(form for form in stage.form if form == "gguf")]}
        if stage.licence is not None:
            named_there = stage.licence.lower() in HUB_LICENCES
            front |= ({"license": stage.licence.lower()} if named_there
                      else {"license": "other", "license_name": stage.licence})
        if self.base is not None:
            front |= {"base_model": self.base, "base_model_relation": "finetune" if whole else "adapter"}
        if named:
            front["datasets"] = list(dict.fromkeys(named))
        return front

    def _head(self) -> list[str]:
        lines = [f"# {self.title}", ""]
        if self.description:
            lines += [self.description, ""]
        methods, came = self.history.methods, base_named(self.history.base)
        base = came if self.base is None or self.base in came else f"{self.base} ({came})"
        lines += [(f"A language model, trained by {', then '.join(methods)} from {base}. " if methods else
                   f"{base}, not trained any further. ") + "Made and exported with KubeAlign.",
                  "", f"Licence: {self.stage.licence or 'none is stated'}."]
        return lines

    def _use(self, *, whole: bool) -> list[str]:
        lines = ["## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        if whole:
            lines += ['tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")',
                      'model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_REPO")']
        else:
            lines += self._adapter_use()
        lines += ['chat = [{"role": "user", "content": "What is the capital of France?"}]',
                  'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", '
                  'return_dict=True)',
                  "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
                  'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))', "```"]
        files = [name for name in self.files if name.endswith(".gguf")]
        if files:
            lines += ["", f"With llama.cpp: `llama-cli -m {files[0]}`; files: {', '.join(files)}."]
        if "fp8" in self.stage.form:
            lines += ["", "The weights in FP8 are vLLM's to serve (`vllm serve FOLDER`); transformers reads them where "
                      "compressed-tensors is installed."]
        return lines

    def _adapter_use(self) -> list[str]:
        base = self.base or "THE_BASE"
        load = f'base = AutoModelForCausalLM.from_pretrained("{base}")'
        lines = ["from peft import PeftModel", "", 'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")']
        if self.over == "dequantised":
            lines += ["# Trained over the base in four bits; over other weights it is another model.",
                      "from transformers import BitsAndBytesConfig",
                      'nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
                      "bnb_4bit_use_double_quant=True)",
                      f'base = AutoModelForCausalLM.from_pretrained("{base}", quantization_config=nf4)']
        else:
            lines += [load]
        if self.history.base is not None and self.history.base.manifest.facts.get("new_tokens"):
            lines += ["base.resize_token_embeddings(len(tokenizer))  # tokens that the base has not"]
        return [*lines, 'model = PeftModel.from_pretrained(base, "FOLDER_OR_REPO")']

    def _results(self) -> list[str]:
        lines = ["## Results", ""]
        if not self.evaluations:
            return [*lines, "No evaluation is quoted: none was named when the model was exported."]
        for name, artifact in self.evaluations.items():
            results = results_of(artifact)
            if results is not None:
                lines += _table(name, results, artifact, self.stage.model)
        return lines

    def _fidelity(self) -> list[str]:
        lines = ["## What was exported, held against what was trained", "",
                 f"The trained model and each exported form read the same tokens ({self.source}). KL: how far the "
                 "form's probabilities are from the trained model's, in nats per token. Top-1: share of positions with "
                 "the same likeliest token. Greedy: share of the tokens of greedy answers that are the same; it is "
                 "bound to nothing, since one near tie changes all that follows.", "",
                 "| form | KL | at most | top-1 | at least | greedy | positions |", "|---|---|---|---|---|---|---|"]
        for form, (found, (most, least)) in self.compared.items():
            lines.append(f"| {form} | {found.kl:.2e} | {most:g} | {found.top1:.4f} | {least:g} | {found.greedy:.2f} | "
                         f"{found.positions} |")
        if self.over == "dequantised":
            lines += ["", "The adapter was trained over a base in four bits (NF4, double quantisation)"
                      + (", and merged into what those bits stand for." if self.stage.whole
                         and self.stage.merge_into != "original" else ".")]
        return lines

    def _made(self) -> list[str]:
        lines = ["## How it was made", "", "| stage | what | artifact | seconds |", "|---|---|---|---|"]
        for step in self.history.steps:
            lines.append(f"| {step.name} | {step.what} | `{step.key}` | {step.manifest.seconds:g} |")
        trained = [step for step in self.history.steps if step.manifest.kind == "train"]
        if trained:
            lines += ["", *(_hyperparameters(step) for step in trained)]
        return lines

    def _data(self) -> list[str]:
        if not self.history.data:
            return ["## Data", "", "Nothing was trained on."]
        said = self.stage.datasets or {}
        lines = ["## Data", "", "| stage | source | rows | sha256 | licence |", "|---|---|---|---|---|"]
        for data in self.history.data:
            own = said.get(data.name)
            rows = ", ".join(f"{count} {split}" for split, count in data.rows.items())
            licence = own.licence if own is not None and own.licence is not None else "not stated"
            source = (own.hub if own is not None else None) or ", ".join(data.files)
            lines.append(f"| {data.name} | {source} | {rows} | {', '.join(data.digests)} | {licence} |")
        return lines

    def _limits(self) -> list[str]:
        lines = ["## Limits", ""]
        if self.stage.limits:
            lines += [self.stage.limits.strip(), ""]
        else:
            lines += ["The makers state no intended limits.", ""]
        lines += ["Like its base and its data, it can be wrong, biased or harmful; it was not tested for uses where "
                  "that matters. Results says what was measured, and nothing about other tasks or languages. The chat "
                  "template is part of the model: it was trained with the one that comes with it, and with no other."]
        return lines

    def _by(self) -> list[str]:
        last = self.history.steps[-1].manifest if self.history.steps else None
        versions = {} if last is None else last.versions
        told = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "platform")
        return ["## Made with", "", f"{told}.", "", "```", f"kubealign run RUN.yaml --stage {self.stage.name}", "```"]


def _table(name: str, results: Mapping[str, Any], artifact: Artifact, own: str) -> Iterator[str]:
    """An evaluation's means, with their 95 % intervals."""
    models: Mapping[str, Mapping[str, Any]] = results["models"]
    columns = list(dict.fromkeys(metric for line in models.values() for metric in line))
    yield f"Stage {name} (`{artifact.key}`), {results['rows']} rows; mean [95 % interval]."
    yield ""
    yield f"| model | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for model, line in models.items():
        cells = [_cell(line.get(metric)) for metric in columns]
        yield f"| {f'**{model}**' if model == own else model} | {' | '.join(cells)} |"
    yield ""


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:.3f}{interval}"


def _hyperparameters(step: Step) -> str:
    """A line of a list: `- sft: qlora r 64, alpha 16; learning_rate 0.001, lr_scheduler_type cosine`."""
    strategy = {key: value for key, value in (step.config.get("strategy") or {}).items() if key != "why"}
    kind, method = strategy.pop("kind", ""), str(step.config["method"])
    name = step.name if step.name == method else f"{step.name} ({method})"
    keys = {key: step.config.get(key) for key in _KEYS}
    passed = keys.pop("trl") or {}
    return f"- {name}: {kind} {_told(strategy)}; {_told({**keys, **passed})}"


def _told(keys: Mapping[str, Any]) -> str:
    """`r 64, alpha 16`, without keys that say nothing."""
    return ", ".join(f"{key} {_value(value)}" for key, value in keys.items() if value not in (None, {}, False))


def _value(value: Any) -> str:
    return " + ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)
