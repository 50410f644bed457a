"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306); the reference is the start model.

Its KL term is estimated from prompts with another row's answer, which TRL pairs within each forward pass: so rows are
shuffled once, by the run's seed, and then read in that order in every epoch.
"""

from __future__ import annotations

from typing import Any

from trl import KTOConfig, KTOTrainer

from alignment import templates
from alignment.config.stages.train import Kto
from alignment.data.projections import to_unpaired
from alignment.records import Record
from alignment.templates import Encoding
from alignment.training.guards import Guarded
from alignment.training.methods import Method
from alignment.training.prepare import Columns, Prepared, cut_prompt
from alignment.training.reference import KeptReference, reference_facts


class GuardedKto(KeptReference, Guarded, KTOTrainer):  # type: ignore[misc]
    """TRL's KTO trainer over rows that come tokenized."""

    reference_columns = ("ref_logps", "ref_KL_logps")

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if "KL_completion_ids" in dataset.column_names:
            return dataset
        if dataset_name == "train":
            dataset = dataset.shuffle(seed=args.seed)
        # Each answer under its neighbour's prompt, within what one forward pass holds: as TRL does for text.
        answers = _neighbours(list(dataset["completion_ids"]), args.per_device_train_batch_size)
        return dataset.add_column("KL_completion_ids", answers)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # Which neighbours a row has depends on the rows of a forward pass, and so on the number of workers.
        return super()._precompute_ref_logps(dataset, f"{name}-by-{self.args.per_device_train_batch_size}", batch_size)


def _neighbours(answers: list[list[int]], size: int) -> list[list[int]]:
    """For each row another one's answer; a row that the last forward pass has alone gets that of the row before."""
    made: list[list[int]] = []
    for start in range(0, len(answers), size):
        own = answers[start:start + size]
        made += [own[-1] if len(own) > 1 else answers[start - 1], *own[:-1]]
    return made


def columns(record: Record, tokenizer: Any, stage: Kto, prepared: Prepared) -> Encoding[list[Columns] | str]:
    """prompt_ids and completion_ids, both [T], and label (wanted or not), for each answer of the record."""
    answers = to_unpaired(record)
    if isinstance(answers, str):
        return answers
    encoded = yield from templates.gather(
        [templates.completing(tokenizer, prompt, text) for prompt, text, _ in answers])
    longest = max(len(answer) for _, answer in encoded)
    prompt = cut_prompt(encoded[0][0], longest, stage, prepared)
    for _, answer in encoded:
        prepared.supervised += len(answer)
        prepared.lengths.append(len(prompt) + len(answer))
    return [{"prompt_ids": prompt, "completion_ids": answer, "label": wanted}
            for (_, answer), (_, _, wanted) in zip(encoded, answers, strict=True)]


def arguments(stage: Kto) -> dict[str, Any]:
    """Rows come cut; max_length is for the answers of neighbours, which may be longer than the row's own."""
    return {"max_length": stage.longest, "precompute_ref_log_probs": stage.reference_mode == "precomputed"}


METHOD = Method(GuardedKto, KTOConfig, columns, arguments,
                ("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins"), reference_facts)
