"""Training with TRL: one method is one file of methods/; the losses and the loop are the library's.

The only room that imports trl. It knows no Ray: `fit` is called once in every worker process, with or without a
process group, and can be called without Ray at all.
"""

import trl.import_utils as known_to_trl

import alignment.inference  # noqa: F401 - before peft, which warns as it is imported: see there

# Where vLLM is installed, TRL's GRPO and RLOO import it into the process that trains. They are given answers of our own
# engine here, and vLLM's import takes over how a process logs: absl's handler then closes a stderr that was redirected.
known_to_trl.is_vllm_available = lambda min_version=None: False
