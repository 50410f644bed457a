"""Distillation (Hinton et al. 2015, arXiv:1503.02531): every token of the rows' answers, as likely as the teacher
finds it.

Loss and divergence are those of TRL's stable DistillationTrainer, which learns from answers that the student generates
as it trains (arXiv:2306.13649). Here the answers are the rows': their ids, stops and seeds are a sample stage's to
make, where they are kept and seen. So this is off-policy; a group of rounds comes near to on-policy.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer
from trl import DistillationConfig, DistillationTrainer

from alignment import templates
from alignment.artifacts import Artifact
from alignment.config.stages.train import Distill
from alignment.data.projections import to_sft
from alignment.errors import ModelError
from alignment.records import Record
from alignment.templates import Encoding
from alignment.training.guards import Guarded
from alignment.training.methods import Method
from alignment.training.prepare import Columns, Prepared, cut_prompt
from alignment.training.proof import NEAR, TOKENS
from alignment.training.sharding import gathered_for


class Collate:
    """Rows -> the batch that TRL's loss reads: padded at the right, as everywhere here, so that positions are right for
    every architecture. TRL parts a sequence into prompt and completion; the first token is a prompt to it, and
    `tool_mask` takes the rest of ours out of the loss."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """All [B, T]; of a sequence's T tokens 1 is `prompt_ids`, T - 1 are `completion_ids`."""
        size = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)

        def padded(parts: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([part + [value] * (size - len(part)) for part in parts])

        ids = padded([row["prompt_ids"] + row["completion_ids"] for row in rows], self.pad_token_id)
        mask = padded([[1] * (len(row["prompt_ids"]) + len(row["completion_ids"])) for row in rows], 0)
        learned = padded([[0] * len(row["prompt_ids"]) + [1] * len(row["completion_ids"]) for row in rows], 0)
        return {"input_ids": ids, "attention_mask": mask, "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1],
                "completion_ids": ids[:, 1:], "completion_mask": mask[:, 1:], "tool_mask": learned[:, 1:]}


class GuardedDistill(Guarded, DistillationTrainer):  # type: ignore[misc]
    """TRL's distillation loss over the rows' answers, with transformers' own loaders."""

    loss_is_per_token = True
    get_train_dataloader = Trainer.get_train_dataloader
    get_eval_dataloader = Trainer.get_eval_dataloader
    _get_train_sampler = Trainer._get_train_sampler
    _get_eval_sampler = Trainer._get_eval_sampler
    _prepare_inputs = Trainer._prepare_inputs

    def __init__(self, processing_class: Any, **kwargs: Any) -> None:
        super().__init__(processing_class=processing_class, **kwargs)
        self.data_collator = Collate(processing_class.pad_token_id)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor | None:
        """Learned tokens of all passes of an optimizer step, over all workers, as TRL counts what it generates."""
        if not batch_samples:
            return None
        count = torch.stack([batch["tool_mask"].sum() for batch in batch_samples]).sum().to(device)
        over_all: torch.Tensor = self.accelerator.gather(count).sum() / self.accelerator.num_processes
        return over_all

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        # TRL multiplies with the teacher's output head itself, past the forward pass that would gather its weight.
        with gathered_for(self, self.accelerator.unwrap_model(self.teacher_model).get_output_embeddings()):
            return super()._compute_loss(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self._metrics["train"].pop("step_time", None)  # another one after a resume
        super().log(logs, *args, **kwargs)


def columns(record: Record, tokenizer: Any, stage: Distill, prepared: Prepared) -> Encoding[Columns | str]:
    """prompt_ids and completion_ids, both [T]."""
    conversation = to_sft(record)
    if isinstance(conversation, str):
        return conversation
    if not conversation[-1].get("learn", True):
        return "the last answer is marked as not to be learned"
    prompt, answer = yield from templates.completing(tokenizer, conversation[:-1], conversation[-1])
    prompt = cut_prompt(prompt, len(answer), stage, prepared)
    prepared.supervised += len(answer)
    prepared.lengths.append(len(prompt) + len(answer))
    return {"prompt_ids": prompt, "completion_ids": answer}


def arguments(stage: Distill) -> dict[str, Any]:
    """Rows come cut to max_length, in columns that are no arguments of a model."""
    return {"remove_unused_columns": False}


def facts(stage: Distill, trainer: Any, teacher: Artifact) -> dict[str, Any]:
    """Which teacher, and which divergence from it was learned."""
    return {"teacher": {"artifact": teacher.key, "beta": trainer.beta, "temperature": trainer.temperature}}


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of logits [T, V], in nats, as a mean over T; equation 1 of arXiv:2306.13649
    with TRL's ends: 0 is KL(teacher, student), 1 is KL(student, teacher)."""
    one, other = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    if beta in (0, 1):
        start, end = (other, one) if beta == 0 else (one, other)
        return (start.exp() * (start - end)).sum(-1).mean()
    mixed = torch.logaddexp(one + torch.log1p(torch.tensor(-beta)), other + torch.log(torch.tensor(beta)))
    return (beta * (other.exp() * (other - mixed)) + (1 - beta) * (one.exp() * (one - mixed))).sum(-1).mean()


def prove(trainer: Any, dtype: torch.dtype, where: str) -> None:
    """Compare TRL's loss of the first row with the divergence of both models' own logits.

    Raises:
        ModelError: they differ: TRL does not know how an architecture gets from hidden states to logits.
    """
    row, model = trainer.train_dataset[0], trainer.model
    prompt = row["prompt_ids"][-TOKENS // 2:]
    made = Collate(0)([{"prompt_ids": prompt, "completion_ids": row["completion_ids"][:TOKENS // 2]}])  # none is padded
    batch = {name: tensor.to(trainer.args.device) for name, tensor in made.items()}
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        learned = float(trainer._compute_loss(model, batch, None)[0])
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        logits = [one(**inputs).logits[0, len(prompt) - 1:-1] for one in (model, trainer.teacher_model)]
        said = float(divergence(logits[0], logits[1], trainer.beta, trainer.temperature))
    model.train(was_training)
    near = NEAR[torch.bfloat16 if trainer.args.bf16 else dtype] * max(1.0, said)  # by autocast, of float32 weights too
    if not abs(learned - said) <= near:
        raise ModelError(
            "the loss that would be learned from is not that of the models' own logits: TRL does not know how one of "
            "these architectures gets from its last hidden states to logits", where=where,
            found=f"a divergence of {learned:.4g}, and {said:.4g} by their logits",
            expected=f"at most {near:g} apart", hint="other base models")


METHOD = Method(GuardedDistill, DistillationConfig, columns, arguments, ("loss", "entropy"), facts, "teacher_model",
                prove)
