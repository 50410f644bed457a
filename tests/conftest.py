"""Fixtures that several rooms' tests share. Heavy libraries are imported inside, where a test asks for them."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.models import imported

# How long an example takes on a busy machine says nothing about the code; benchmarks/ is for times.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Ray gives its workers what nobody else wants of the CPUs (nice 15): beside another process of tests that is next to
# nothing, so that a training of seconds takes minutes. Read by the raylet, which takes it from whoever starts Ray.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Processes that run tests at once; `make test` starts two, plain pytest is one."""
if SIDE_BY_SIDE > 1:
    # Before torch is loaded, which reads it once: processes that each use all CPUs wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, the longest go first: those with a Ray cluster, one after another in one process, then the slow."""
    if SIDE_BY_SIDE == 1:
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.get_closest_marker("ray"), item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile: files with a Ray cluster are one, so that one cluster is up at a time.

    By their text, as this process collects nothing. Not by xdist_group: xdist 3.8 writes the group into a field that
    pytest 9.2 no longer has, so groups are silently none.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    @functools.cache
    def has_ray(file: str) -> bool:
        return "mark.ray" in (config.rootpath / file).read_text(encoding="utf-8")

    class RayOrFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if has_ray(file) else file

    return RayOrFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep remembered digests and copies of artifacts out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KUBEALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of a tiny random Llama with a ChatML tokenizer, made by the import stage; don't write into it."""
    folder = tmp_path_factory.mktemp("tiny")
    imported(folder, {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": 384})
    return folder / "out" / "model"
