"""Models: import them into the store, load them, generate, log-probabilities, reward scores (transformers, peft).

Importing peft imports bitsandbytes where it is installed, which on some CPUs warns that a kernel of the hub is absent.
Nothing here uses it (it computes in bfloat16 alone), so that one line is not logged.
"""

import logging


def _not_of_the_hub(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in str(record.msg)


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_not_of_the_hub)
