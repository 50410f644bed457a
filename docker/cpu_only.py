"""A train image for machines without GPU: no CUDA packages, and torch's CUDA build still loads.

    python cpu_only.py lock LOCK        # LOCK without the packages that only a GPU needs, to standard output
    python cpu_only.py fill TORCH       # empty libraries of the missing names beside the package folder TORCH

The index has one torch per platform, built for CUDA, and its shared objects name CUDA's libraries as needed: the
loader refuses torch where one is missing, although nothing calls it (torch asks libcudart first, which is kept and
answers that there is no driver). So every missing library is made anew with the symbols that torch asks it for, each
of which answers 1: in all of CUDA's libraries an error, mostly "not initialised". That is a few KB in place of 3 GB.
Runs in the build stage only; needs `cc` and `readelf`. Not for an image that meets a GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

_UNUSED = re.compile(r"(nvidia-(?!cuda-runtime|cuda-cupti)|cuda-(?!toolkit)|triton$)")
"""libcudart says that there is no GPU and libcupti serves torch.profiler: both are small and stay. cuda-toolkit is
metadata alone."""


def kept(lock: str) -> str:
    """The requirements of a hashed lock file that a machine without GPU needs, unchanged."""
    entries = re.split(r"(?m)^(?=\S)", lock)
    return "".join(entry for entry in entries if not _UNUSED.match(entry.partition("==")[0]))


def fill(torch: Path) -> dict[str, int]:
    """Make the libraries that those in TORCH/lib need and that are nowhere; returns each name's count of symbols.

    Raises:
        subprocess.CalledProcessError: when a file cannot be read or made.
    """
    present = sorted(torch.parent.glob("nvidia/*/lib/*.so*"))
    there = {path.name for path in present}
    defined = {symbol for path in present for symbol, _ in _symbols(path, "\\d+")}
    asked: dict[str, dict[str, set[str]]] = {}
    loaded = [torch / "lib" / "libtorch_python.so"]
    for path in loaded:
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", _readelf("-d", path)):
            other = path.with_name(name)
            if other.exists():
                loaded += [other] if other not in loaded else []
            elif name not in there and re.match("lib(cu|nv|nccl)", name):
                asked.setdefault(name, defaultdict(set))
        files = _files_of_versions(path)
        for symbol, version in _symbols(path, "UND"):
            if version and files.get(version) in asked:
                asked[files[version]][version].add(symbol)
            elif not version and asked and symbol not in defined and re.match("cu|nccl|nvshmem|nvrtc", symbol):
                asked[next(iter(asked))][""].add(symbol)  # the loader takes one without version from any library
    for name, versions in asked.items():
        _make(torch.parent / "nvidia" / "cu13" / "lib" / name, versions)
    return {name: sum(map(len, versions.values())) for name, versions in asked.items()}


def _files_of_versions(path: Path) -> dict[str, str]:
    """Symbol version -> the library that is to define it."""
    files, file = {}, ""
    for kind, name in re.findall(r"(File|Name): (\S+)", _readelf("-V", path)):
        if kind == "File":
            file = name
        else:
            files[name] = file
    return files


def _symbols(path: Path, section: str) -> list[tuple[str, str]]:
    """(name, version or "") of the dynamic symbols in the sections that match; UND are those asked of others."""
    return re.findall(rf" {section} (\w+)(?:@@?([\w.]+))?", _readelf("--dyn-syms", path))


def _make(path: Path, versions: dict[str, set[str]]) -> None:
    """Shared object `path` with the symbols of each version; those of version "" get none."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "empty.c"), Path(folder, "versions")
        source.write_text("".join(f"int {symbol}(void) {{ return 1; }}\n"
                                  for symbol in sorted(set().union(*versions.values()))))
        script.write_text("".join(f"{version} {{ {' '.join(f'{symbol};' for symbol in sorted(symbols))} }};\n"
                                  for version, symbols in versions.items() if version))
        options = [f"-Wl,--version-script={script}"] if script.stat().st_size else []
        subprocess.run(["cc", "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-Os", "-s", *options,
                        f"-Wl,-soname,{path.name}", "-o", str(path), str(source)], check=True)


def _readelf(what: str, path: Path) -> str:
    return subprocess.run(["readelf", "-W", what, str(path)], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["lock", name]:
            print(kept(Path(name).read_text()), end="")
        case ["fill", name]:
            print(*(f"{library}: {count} symbols" for library, count in fill(Path(name)).items()), sep="\n")
        case _:
            raise SystemExit(__doc__)
