"""Models: import them into the store, load them, generate, log-probabilities, reward scores (transformers, peft).

Two libraries greet whoever imports them on a CPU, unasked: bitsandbytes, which peft imports, that a kernel of the hub
is absent (nothing here uses it: it computes in bfloat16 alone), and DeepSpeed, which accelerate imports where a model
is saved, that it takes the CPU. Those two lines are not logged; all others are.
"""

import logging

_GREETINGS = {"bitsandbytes.backends.cpu.ops": "gemm_4bit_forward", "DeepSpeed": "Setting accelerator to CPU"}
"""Logger -> what its greeting holds."""


def _is_no_greeting(record: logging.LogRecord) -> bool:
    return _GREETINGS[record.name] not in str(record.msg)


for _name in _GREETINGS:
    logging.getLogger(_name).addFilter(_is_no_greeting)
