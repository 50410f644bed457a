"""Entry of the `kubealign` command: what an interrupt and every error become, around the sub-commands of `app`.

Exit codes: 0 done, 1 a bug of ours (with its traceback, of a stage in its log), 2 something to mend in the run, its
data or the command line (or a preflight that found it), 3 missed aims under --strict-aims, 130 interrupted, 143
terminated.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from alignment import interrupt

_OUTPUT = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
"""What a file or terminal that takes our output may say; of other files, errors come with their names."""


def main() -> None:
    """Run the command line of this process; ends it with one of the exit codes above."""
    interrupt.guard()  # before all that takes time: Ctrl-C may come while modules are loaded
    _settle_home()
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows another one, and nothing ends
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    from alignment.cli.app import app
    from alignment.cli.show import complain
    from alignment.errors import KubeAlignError, Unforeseen
    from alignment.exits import Exit

    try:
        app()
    except KubeAlignError as error:
        complain(error)
        sys.exit(Exit.BUG if isinstance(error, Unforeseen) else Exit.USER)
    except OSError as error:
        if error.filename is not None or error.errno not in _OUTPUT:
            raise
        complain(KubeAlignError(f"the output cannot be written: {error.strerror}"))
        os._exit(Exit.USER)  # Python would try to write the rest once more, and complain
    finally:
        interrupt.settle()


def _settle_home() -> None:
    """A user without home and name (a container's random uid) gets the cache's: Ray and torch end without them."""
    cache = os.environ.get("KUBEALIGN_CACHE")
    if cache and os.path.expanduser("~") == "~":
        os.environ["HOME"] = os.path.abspath(cache)
        os.environ.setdefault("USER", str(os.getuid()))


if __name__ == "__main__":
    main()
