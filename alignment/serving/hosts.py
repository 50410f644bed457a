"""Which addresses are this machine's alone, what an API key is, and what a server's environment says of both and of the
pod around it. Plain; asked before anything is loaded, and by whoever makes such an environment."""

from __future__ import annotations

import ipaddress

from alignment.errors import ConfigError

KEY_FROM = "KUBEALIGN_API_KEY"
"""Environment variable with the API key."""
NO_KEY = "KUBEALIGN_NO_API_KEY"
"""Set to 1: whoever reaches a replica may ask it."""
SERVICE, REVISION = "KUBEALIGN_SERVICE", "KUBEALIGN_REVISION"
"""The RayService whose replica it is, and which revision of it."""
WRITES = "{service}.{revision}"
"""How the proofs of a revision are called in the store; neither has a dot in it."""
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
