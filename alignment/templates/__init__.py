"""Chat templates and the one way from messages to token ids: training, sampling, scoring and evaluation all call it.

The templates are jinja files in this folder, with transformers' `{% generation %}` markers around what the assistant
says. Tokenizers are passed in as objects; nothing here imports torch or loads a model.
"""

from alignment.templates.calls import Spoken, call_marks, read_turn
from alignment.templates.convention import Convention
from alignment.templates.encode import (
    completing,
    conversing,
    decode_answer,
    encode_answer,
    encode_completion,
    encode_conversation,
    encode_prompt,
    end_id,
    prompting,
    spelled,
    stop_ids,
    together,
)
from alignment.templates.growing import Growing
from alignment.templates.library import (
    fitted,
    has_generation_markers,
    name_of,
    names,
    same_rendering,
    shipped,
    source,
    template_hash,
)
from alignment.templates.steps import Encoding, gather

__all__ = [
    "Convention", "Encoding", "Growing", "Spoken", "call_marks", "completing", "conversing", "decode_answer",
    "encode_answer", "encode_completion", "encode_conversation", "encode_prompt", "end_id", "fitted", "gather",
    "has_generation_markers", "name_of", "names", "prompting", "read_turn", "same_rendering", "shipped", "source",
    "spelled", "stop_ids", "template_hash", "together",
]
