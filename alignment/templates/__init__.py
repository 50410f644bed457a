"""Chat templates and the one way from messages to token ids: training, sampling, scoring and evaluation all call it.

The templates are jinja files in this folder, with transformers' `{% generation %}` markers around what the assistant
says. Tokenizers are passed in as objects; nothing here imports torch or loads a model.
"""

from alignment.templates.convention import Convention
from alignment.templates.encode import (
    decode_answer,
    encode_answer,
    encode_completion,
    encode_conversation,
    encode_prompt,
    end_id,
    spelled,
    stop_ids,
)
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

__all__ = [
    "Convention", "decode_answer", "encode_answer", "encode_completion", "encode_conversation", "encode_prompt",
    "end_id", "fitted", "has_generation_markers", "name_of", "names", "same_rendering", "shipped", "source", "spelled",
    "stop_ids", "template_hash",
]
