"""docker/cpu_only.py on the real lock file, and on shared objects made here whose libraries are then lost."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "cpu_only.py"
needs_compiler = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("readelf")),
                                    reason="needs cc and readelf, as the build stage has them")


@pytest.fixture(scope="module")
def cpu_only() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpu_only", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_loses_the_gpu_packages_and_nothing_else(cpu_only: ModuleType) -> None:
    lock = (ROOT / "requirements" / "train.txt").read_text()
    kept = cpu_only.kept(lock)
    gone = set(re.findall(r"(?m)^(\S+)==", lock)) - set(re.findall(r"(?m)^(\S+)==", kept))
    assert {"triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= gone
    assert all(name == "triton" or name.startswith(("nvidia-", "cuda-")) for name in gone)
    assert not {"nvidia-cuda-runtime", "nvidia-cuda-cupti"} & gone
    lines = lock.splitlines()
    assert [line for line in lines if line in set(kept.splitlines())] == kept.splitlines()
    hashes = {name: lock.split(f"\n{name}==")[1].split("\n")[1] for name in ("torch", "ray")}
    assert all(line in kept for line in hashes.values()), "a kept package keeps its hashes"


@pytest.fixture
def torch_like(tmp_path: Path) -> Path:
    """Laid out like torch: libtorch_python.so needs libtorch_cuda.so, which needs three libraries; two are lost."""
    site = tmp_path / "site-packages"
    lib, cuda = site / "torch" / "lib", site / "nvidia" / "cu13" / "lib"
    for folder in (lib, cuda):
        folder.mkdir(parents=True)

    def make(path: Path, source: str, *needed: Path, script: str = "") -> None:
        (tmp_path / "a.c").write_text(source)
        (tmp_path / "a.map").write_text(script)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", str(path), str(tmp_path / "a.c"), f"-Wl,-soname,{path.name}",
             "-Wl,--no-as-needed", "-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN:$ORIGIN/../../nvidia/cu13/lib",
             *([f"-Wl,--version-script={tmp_path / 'a.map'}"] if script else []), *map(str, needed)], check=True)

    blas, nccl, kept = cuda / "libcublas.so.13", cuda / "libnccl.so.2", cuda / "libcudart.so.13"
    make(blas, "int cublasCreate(void) { return 0; }", script="libcublas.so.13 { cublasCreate; };")
    make(nccl, "int ncclInit(void) { return 0; }")
    make(kept, "int cudaCount(void) { return 35; }")
    outer = lib / "libtorch_cuda.so"
    make(outer, "int cublasCreate(void), ncclInit(void), cudaCount(void);"
                "int blas(void) { return cublasCreate(); } int nccl(void) { return ncclInit(); }"
                "int count(void) { return cudaCount(); }", blas, nccl, kept)
    make(lib / "libtorch_python.so", "int blas(void); int python(void) { return blas(); }", outer)
    blas.unlink()
    nccl.unlink()
    return site / "torch"


@needs_compiler
def test_missing_libraries_are_filled_and_answer_with_an_error(torch_like: Path, cpu_only: ModuleType) -> None:
    entry = str(torch_like / "lib" / "libtorch_python.so")
    before = subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({entry!r})"],
                            capture_output=True, text=True)
    assert "libcublas.so.13: cannot open shared object file" in before.stderr

    made = cpu_only.fill(torch_like)

    assert set(made) == {"libcublas.so.13", "libnccl.so.2"}
    assert sum(made.values()) == 2, "cudaCount is not made, as libcudart has it"
    # Processes of their own: this one may have the real torch loaded, and a name is loaded once.
    outer = str(torch_like / "lib" / "libtorch_cuda.so")
    code = f"import ctypes; cuda = ctypes.CDLL({outer!r}); print(cuda.blas(), cuda.nccl(), cuda.count())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (said.stdout, said.stderr) == ("1 1 35\n", ""), "errors, but for the library that is there"
    again = subprocess.run([sys.executable, "-c", f"import ctypes; print(ctypes.CDLL({entry!r}).python())"],
                           capture_output=True, text=True)
    assert (again.stdout, again.stderr) == ("1\n", "")


@needs_compiler
def test_nothing_is_made_where_nothing_is_missing(torch_like: Path, cpu_only: ModuleType) -> None:
    cpu_only.fill(torch_like)
    folder = torch_like.parent / "nvidia" / "cu13" / "lib"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cpu_only.fill(torch_like) == {}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_wrong_command_line_says_how_it_is_used() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "prune"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cpu_only.py lock LOCK" in done.stderr
