"""A driver that is asked to end has its workers save first, through the Ray cluster's own key-value store.

The driver's half, and the words that both halves leave there; asked.py is the workers'. Ends nothing. Ray Train itself
has no word from a driver to its workers: `ray.train.get_preemption_info` tells of nodes that Ray drains.
"""

from __future__ import annotations

import time

from alignment import interrupt

TRAINING, SAVE, SAVED = "training", "save", "saved"
"""There is something to save; it is asked for; what was saved, in words."""
_LOOKS = 0.1


class Asks:
    """For one stage.

    Args:
        key: of the stage.
    """

    def __init__(self, key: str) -> None:
        self.key, self.going = key, False

    def begin(self) -> None:
        """Before workers start: what an earlier attempt has left is gone, and SIGTERM asks from here on."""
        for name in (TRAINING, SAVE, SAVED):
            forget(self.key, name)
        self.going = True
        interrupt.saving(self._save)

    def end(self) -> None:
        """Nothing is trained any more."""
        self.going = False
        interrupt.saving(None)

    def _save(self, seconds: float) -> str | None:
        if get(self.key, TRAINING) is None:
            return None
        forget(self.key, SAVED)
        put(self.key, SAVE, "now")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # In this order: workers that come to their end take TRAINING back after the last answer.
            going = self.going and get(self.key, TRAINING) is not None
            said = get(self.key, SAVED)
            if said is not None or not going:
                return said
            time.sleep(_LOOKS)
        return f"its workers did not save within {seconds:g} s"


def get(key: str, name: str) -> str | None:
    """What stands there, if something does."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: bytes | None = _internal_kv_get(f"{key}/{name}", namespace="kubealign")
    return None if found is None else found.decode()


def put(key: str, name: str, value: str) -> None:
    """Write over what stands there."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(f"{key}/{name}", value, namespace="kubealign")


def forget(key: str, name: str) -> None:
    """Remove it; nothing where there is none."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(f"{key}/{name}", namespace="kubealign")
