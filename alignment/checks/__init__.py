"""What can be known to fail before anything is started, beyond the run file itself: files, models, names, the store.

Touches no network, loads no model and imports no torch. Import what you need: `stages`, `store`.
"""
