"""Which addresses are this machine's alone, and what an API key is. Plain; asked before anything is loaded."""

from __future__ import annotations

import ipaddress

from alignment.errors import ConfigError

KEY_FROM = "KUBEALIGN_API_KEY"
"""Environment variable with the API key."""
_SHORTEST = 8
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def on_loopback(host: str) -> bool:
    """Whether only this machine can call a server at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def checked_key(given: str, variable: str) -> str:
    """An API key. Raises ConfigError for one that no header can bring, or that is soon guessed."""
    if len(given) < _SHORTEST or not given.isascii() or not given.isprintable() or " " in given:
        raise ConfigError("the API key cannot be sent, or is too short", where=variable,
                          expected=f"{_SHORTEST} or more printable ASCII letters without blanks")
    return given
