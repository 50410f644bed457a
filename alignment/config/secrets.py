"""Keys of endpoints, which stand in the environment and nowhere else: a run file names the variable."""

from __future__ import annotations

import os

from alignment.errors import ConfigError


def key_from(variable: str, where: str) -> str:
    """The key, white space around it left out.

    Raises:
        ConfigError: the variable is not set, or holds what no header can.
    """
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError("the endpoint's key is not in the environment", where=where,
                          found=f"{variable}, {'with letters that no header has' if key else 'empty or not set'}",
                          expected="the key as its value, where the stage is made",
                          hint="on a cluster: env_from of the profile names the Secret")
    return key
