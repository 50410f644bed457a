"""What is settled about a model's texts at its import and stands in no file of its tokenizer.

`kubealign.json` carries it (inference/info.py), `loading.load_tokenizer` puts it on the tokenizer, and `encode_*` and
`stop_ids` obey it, so that training, sampling, scoring and evaluation agree. Knows no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpecialTokensInText = Literal["as-text", "as-tokens", "refuse"]
_ATTRIBUTE = "kubealign_convention"


@dataclass(frozen=True)
class Convention:
    """How a model's texts are read and where its answers end.

    Attributes:
        special_tokens_in_text: what becomes of a message that spells a special token (`<|im_end|>`): its letters, that
            token, or a refusal of the row.
        stop_ids: where the model's maker lets generation stop, beside what the chat template says; sorted.
    """

    special_tokens_in_text: SpecialTokensInText = "as-text"
    stop_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Convention:
        """What was put on the tokenizer, else the defaults."""
        found = getattr(tokenizer, _ATTRIBUTE, None)
        return found if isinstance(found, cls) else cls()

    def put_on(self, tokenizer: PreTrainedTokenizerBase) -> None:
        setattr(tokenizer, _ATTRIBUTE, self)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stop_ids": list(self.stop_ids)}

    @classmethod
    def from_json(cls, info: dict[str, Any]) -> Convention:
        """Inverse of to_json, other keys left alone, absent ones by default; raises ValueError on other values."""
        said = info.get("special_tokens_in_text", "as-text")
        if said not in get_args(SpecialTokensInText):
            raise ValueError(f"special_tokens_in_text {said!r}")
        return cls(said, tuple(int(index) for index in info.get("stop_ids", ())))
