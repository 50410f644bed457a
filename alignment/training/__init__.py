"""Training with TRL: one method is one file of methods/; the losses and the loop are the library's.

The only room that imports trl. It knows no Ray: `fit` is called once in every worker process, with or without a
process group, and can be called without Ray at all.
"""

import alignment.inference  # noqa: F401 - before peft, which warns as it is imported: see there
