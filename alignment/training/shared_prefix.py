"""Trainers whose rows go through the model laid out in fewer tokens than TRL's: pairs with their prompt once, several
rows in one sequence, and the output head at the answers alone.

Only the backbone's input and output are changed, by hooks: losses, metrics and the reference stay TRL's code, which
gets the hidden states that it would have had. Whether it does is proved on the first rows before the first step; where
it does not, or may not (dropout would fall otherwise, a layer mixes tokens beside attention), TRL's layout stays, and
that is said. See layout.py for what stands where.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import is_torch_flex_attn_available

from alignment.inference.capped import CAPPED
from alignment.progress import console
from alignment.training.checkpoints import everywhere
from alignment.training.layout import NAMES, Ids, Laid, LaidOut, Layout, lay_out, layout_of, shared

BEFORE, AFTER = 48, 16
"""Tokens of what a group shares, and of each sequence beyond it, that are compared before the first step."""
NEAR = {True: (1e-4, 1e-5), False: (0.15, 0.01)}
"""Relative difference of hidden states that rounding explains, of one token and on average: in float32, and below.
Measured on SmolLM2-135M: 1e-6 and 7e-8; 0.02 and 0.001 in bfloat16. Answers that see each other: 0.5 and 0.06."""
KNOWN = {"full_attention", "sliding_attention"}
BY_LENGTH = {"dynamic", "longrope"}
"""Rotary embeddings that depend on how long a batch is padded."""
DRAWN = ("dropout", "pdrop", "layerdrop", "jitter_noise")
"""What rates of something random are called in transformers' layers."""
ALIKE = ("model_type", "sliding_window", "layer_types", "_attn_implementation")
INPUTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "past_key_values")


class OneSequence:
    """Mixin before a TRL trainer, first of all."""

    laid: Laid
    """The sequences of a row; each trainer's own, mostly a static method."""
    fact: str
    """What the manifest calls it."""
    why_not: str | None = "not asked yet"
    """Why rows are laid out as TRL lays them out; None where they are not."""
    windows: tuple[int | None, bool] = (None, False)
    """How far sliding layers look back where some row is longer, and whether other layers see everything."""
    layout: Layout | None = None
    model: Any
    args: Any
    accelerator: Any
    train_dataset: Any
    data_collator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._collates()

    def settle_layout(self, stage: str | None = None) -> None:
        """Decide it, with the model as it is now; a stage's name is for the sentence that says why not."""
        collator = self._collates()
        found = structural(self) or self._differs()
        if not everywhere(found is None):
            found = found or "on another worker the two layouts differ"
        self.why_not, collator.on = found, found is None
        if found is not None and stage is not None and self.args.process_index == 0:
            console.print(f"  {stage}: rows go through the model one sequence each ({found})")

    def layout_facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {self.fact: self.why_not is None} | ({} if self.why_not is None else {f"{self.fact}_not": self.why_not})

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self._as_laid_out(inputs) as rest:
            return super().compute_loss(model, rest, *args, **kwargs)  # type: ignore[misc]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        with self._as_laid_out(inputs) as rest:
            return super().compute_ref_log_probs(model, rest)  # type: ignore[misc]

    def _precompute_ref_logps(self, *args: Any) -> Any:
        # TRL asks for it while it is being made.
        self.settle_layout()
        return super()._precompute_ref_logps(*args)  # type: ignore[misc]

    def _collates(self) -> LaidOut:
        """The collator, around TRL's from the first time on, and hooks on every backbone that is asked."""
        collator = getattr(self.data_collator, "collator", None)
        for one in (self.data_collator, collator):
            if isinstance(one, LaidOut):
                return one
        made = self.data_collator = LaidOut(self.data_collator, type(self).laid)
        for backbone in self._backbones():
            backbone.register_forward_pre_hook(self._before, with_kwargs=True)
            backbone.register_forward_hook(self._after)
        return made

    def _backbones(self) -> list[Any]:
        """Of the policy, and of a reference that is a model by itself."""
        models = (self.model, getattr(self, "ref_model", None))
        return [backbone_of(self.accelerator.unwrap_model(model)) for model in models if model is not None]

    @contextmanager
    def _as_laid_out(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        rest, self.layout = layout_of(inputs)
        try:
            yield rest
        finally:
            self.layout = None

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self.layout is None:
            return None
        kept = {name: value for name, value in kwargs.items() if name not in INPUTS}
        return (), kept | {"input_ids": self.layout.ids, "position_ids": self.layout.positions,
                           "attention_mask": mask(self.layout, module.config, module.dtype, *self.windows)}

    def _after(self, module: Any, args: Any, output: Any) -> Any:
        if self.layout is None:
            return None
        if isinstance(output, tuple):
            return (self.layout.read(output[0]), *output[1:])
        output.last_hidden_state = self.layout.read(output.last_hidden_state)
        return output

    def _differs(self) -> str | None:
        """Whether hidden states differ from those of sequences by themselves: of the first rows, all in one sequence,
        and of the longest, where layers look back less than it is long. In words; None where they do not."""
        pad = self._collates().collator.pad_token_id
        config = self.accelerator.unwrap_model(self.model).config.get_text_config()
        rows = [self.train_dataset[index] for index in range(min(2, len(self.train_dataset)))]
        groups = [_short(self.laid(row, pad)[0]) for row in rows] * (1 if len(rows) > 1 else 2)
        self.windows = (None, False)
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        if (window := getattr(config, "sliding_window", None)) and "sliding_attention" in kinds:
            longest = max((self.laid(row, pad)[0] for row in _all(self)), key=lambda group: max(map(len, group)))
            if max(map(len, longest)) > window:
                self.windows = (window, "full_attention" in kinds)
                groups.append(longest)
        was_training = self.model.training
        self.model.eval()
        try:
            found = (self._compared(backbone, groups) for backbone in self._backbones())
            return next(filter(None, found), None)
        finally:
            self.model.train(was_training)

    def _compared(self, backbone: Any, groups: list[list[Ids]]) -> str | None:
        device = next(self.model.parameters()).device
        room = sum(len(ids) for group in groups for ids in group)
        laid = lay_out(groups, [[0] * len(group) for group in groups], 0, room)
        layout = Layout(*(getattr(laid, name).to(device) for name in NAMES))
        sequences = [group[side] for side in range(len(groups[0])) for group in groups]
        with torch.no_grad(), self.accelerator.autocast():
            alone = [_states(backbone, torch.tensor([ids], device=device))[0] for ids in sequences]
            self.layout = layout
            try:
                together = _states(backbone, layout.ids)
            except Exception as error:  # whatever a model says to a mask of another shape; the rows alone it took
                return f"the model takes no mask of its own: {type(error).__name__}"
            finally:
                self.layout = None
        exact = alone[0].dtype == torch.float32 and not (self.args.bf16 or self.args.fp16)
        both = [(own.float(), there[: len(own)].float()) for own, there in zip(alone, together, strict=True)]
        off = torch.cat([(own - there).norm(dim=-1) / own.norm(dim=-1) for own, there in both])
        near = all(float(found) <= most for found, most in zip((off.max(), off.mean()), NEAR[exact], strict=True))
        return None if near else f"the two layouts differ by {float(off.max()):.1g}"


def backbone_of(model: Any) -> Any:
    """Below the output head, of a policy or a reward model, with or without an adapter."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model


def structural(trainer: Any) -> str | None:
    """What forbids another layout whatever the first rows say, in words; None where nothing does."""
    model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    config, collator = model.config.get_text_config(), trainer._collates().collator
    if any(getattr(collator, name, None) for name in ("max_length", "pad_to_multiple_of", "padding_free",
                                                      "return_position_ids")) or getattr(args, "packing", False) or (
            args.include_num_input_tokens_seen not in ("no", False)):
        return "trl has the batch laid out or counted in a way of its own"
    if getattr(trainer, "aux_loss_enabled", False):
        return "the loss has a term over the experts of every token"
    if args.torch_compile or trainer.is_fsdp_enabled or trainer.accelerator.parallelism_config is not None:
        return "the model is compiled, or shared out over machines by token or by weight"
    if trainer.is_deepspeed_enabled and args.deepspeed_plugin.zero_stage == 3:
        return "its weights are partitioned over the workers"
    if (name := "neftune" if args.neftune_noise_alpha else _drawn(model)) is not None:
        return f"dropout or noise falls otherwise on what is shared: {name}"
    if (reference := getattr(trainer, "ref_model", None)) is not None:
        other = trainer.accelerator.unwrap_model(reference).config.get_text_config()
        if any(getattr(other, name, None) != getattr(config, name, None) for name in ALIKE):
            return f"the reference is shaped otherwise: {other.model_type}"
    if config._attn_implementation not in ("sdpa", "eager", "flex_attention", CAPPED):
        return f"attention by {config._attn_implementation}"
    others = sorted(set(getattr(config, "layer_types", None) or KNOWN) - KNOWN)
    if others or backbone_of(model)._is_stateful or getattr(config, "attention_chunk_size", None):
        return f"layers that mix tokens otherwise: {', '.join(others) or config.model_type}"
    rope = getattr(config, "rope_parameters", None) or {}
    if BY_LENGTH & {str(one.get("rope_type")) for one in (rope, *rope.values()) if isinstance(one, dict)}:
        return "places in a sequence depend on how long the batch is"
    return None


def mask(layout: Layout, config: Any, dtype: torch.dtype, window: int | None, mixed: bool) -> Any:
    """Who sees whom, in the form that the model's attention takes.

    Args:
        window: how far sliding layers look back, where that is less than some row.
        mixed: whether other layers see everything: then a mask for each kind, by its name.
    """
    made = {"sliding_attention": _as_taken(layout, config, dtype, window)} if window is not None else {}
    if window is None or mixed:
        made["full_attention"] = _as_taken(layout, config, dtype, None)
    return made if len(made) == 2 else next(iter(made.values()))


def _as_taken(layout: Layout, config: Any, dtype: torch.dtype, window: int | None) -> Any:
    if config._attn_implementation == "flex_attention" and is_torch_flex_attn_available():
        from torch.nn.attention.flex_attention import create_block_mask

        seen = (layout.seen if window is None else layout.within(window))[:, 0]
        return create_block_mask(lambda row, head, query, key: seen[row, query, key], B=len(layout.ids), H=None,
                                 Q_LEN=layout.ids.shape[1], KV_LEN=layout.ids.shape[1], device=layout.ids.device)
    seen = layout.seen if window is None else layout.within(window)
    if config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _states(backbone: Any, ids: Tensor) -> Tensor:
    output = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    states: Tensor = output[0]
    return states


def _short(group: list[Ids]) -> list[Ids]:
    common = shared(group)
    return [ids[max(0, common - BEFORE):common + AFTER] for ids in group]


def _all(trainer: Any) -> Iterator[dict[str, Any]]:
    for rows in filter(None, (trainer.train_dataset, trainer.eval_dataset)):
        yield from rows


def _drawn(model: Any) -> str | None:
    """The first place where something is drawn in training: torch's layers, and rates that layers keep by a name."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            return name or type(module).__name__
        for key, value in vars(module).items():
            if key.endswith(DRAWN) and isinstance(value, float) and value > 0:
                return f"{name}.{key}"
    return None
