"""Which addresses are this machine's alone. Plain; the command line asks it before anything is loaded."""

from __future__ import annotations

import ipaddress

LOCAL = ("localhost", "127.0.0.1", "[::1]")


def on_loopback(host: str) -> bool:
    """Whether only this machine can call a server at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
