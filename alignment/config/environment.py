"""Environment variables that pods may not be given: those that undo a protection, and those that the manifests set.

One rule for profiles and AlignmentRuns, and for the chart's values (charts/kubealign/templates/_helpers.tpl, which a
test holds to it). What a Secret brings is not seen here: where it matters the manifests set the variable, and that
wins.
"""

from __future__ import annotations

import re

REFUSED: tuple[tuple[str, str], ...] = (
    (r"RAY_.*AUTH.*", "decides whether Ray asks for its token, and for which"),
    (r"RAY_USE_TLS|RAY_TLS_.*", "decides how Ray's processes know each other"),
    (r"RAY_ADDRESS|(FQ_)?RAY_IP|RAY_PORT|(RAY_)?REDIS_.*|RAY_GCS_STORAGE.*", "ties a stage to another Ray cluster"),
    (r"RAY_DEBUG(_POST_MORTEM|GER_.*)?", "opens a port that asks for no token"),
    (r"RAY_.*(_HOOK|_PLUGINS?|PRELOAD|JEMALLOC).*", "makes Ray run code that is not the image's"),
    (r"LD_.*|GCONV_PATH|OPENSSL_(CONF|MODULES|ENGINES)|BASH_ENV|PATH",
     "makes programs run code that is not the image's"),
    (r"PYTHON(PATH|HOME|STARTUP|USERBASE|EXECUTABLE|PLATLIBDIR|PYCACHEPREFIX|BREAKPOINT|INSPECT)",
     "makes Python run code that is not the image's"),
    (r"PYTHONOPTIMIZE", "takes checks out of the code that runs"),
    (r"PYTHONHTTPSVERIFY|SSLKEYLOGFILE|.*(DISABLE_SSL|SSL_NO_VERIFY).*", "lays encrypted connections open"),
    (r".*TRUST_REMOTE_CODE.*|TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "lets models and files bring code along"),
    (r"HOME|TMPDIR|TMP|TEMP|KUBEALIGN_.*", "is set by the manifests"),
)
"""Whole names, in letters of either case -> what such a variable does."""


def refused(name: str) -> str | None:
    """What a variable does, if pods may not be given it."""
    return next((does for pattern, does in REFUSED if re.fullmatch(pattern, name, re.IGNORECASE)), None)
