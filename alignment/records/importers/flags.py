"""Whether a turn is learned: what OpenAI's fine-tuning (`weight`), Axolotl (`train`, `training`) and others write.

Only all or nothing can be honoured. Knows turns and no rows; which formats honour flags says `keys`.
"""

from __future__ import annotations

from typing import Any

from alignment.records.importers.rows import RowError, given

FLAGS = ("weight", "loss_weight", "loss_mask", "loss", "train", "training", "learn")
"""Keys of a turn that say whether it is learned, or how much; the last is ours, of rows that were imported before."""
SPEAKERS = ("assistant", "gpt", "chatgpt", "model", "function_call")
"""Who is learned, under the names that rows have for it."""


def default(key: str, value: Any, speaker: str) -> bool:
    """Whether a flag says what is done anyway: an assistant's turn is learned, no other is."""
    if speaker in SPEAKERS:
        return value in (1,)
    return value in ((0, 1) if key.endswith("weight") else (0,))


def learned(turn: dict[str, Any], speaker: str, where: str) -> bool:
    """Whether an assistant's turn is to be learned.

    Raises RowError unsupported-field for parts of a weight and for other speakers; flags-differ.
    """
    flags = {key: value for key in FLAGS if (value := given(turn, key)) is not None}
    for key, value in flags.items():
        if not default(key, value, speaker) and (speaker not in SPEAKERS or value not in (0,)):
            raise RowError("unsupported-field", f"{where}.{key} is {value!r}: a turn of the assistant is learned (1, "
                                                "true) or not (0, false), and no other is")
    if len({bool(value) for value in flags.values()}) > 1 and speaker in SPEAKERS:
        raise RowError("flags-differ", f"{where} has {flags}, of which some say learned and some not")
    return all(map(bool, flags.values())) or speaker not in SPEAKERS
