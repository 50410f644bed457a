"""Wheels that a bare GPU machine lacks, in a folder that can be carried there.

    python -m benchmarks.gpu.pack FOLDER [--python 3.12]
    python -m pip install --no-index --no-deps --target SITE FOLDER/*.whl     # there, with PYTHONPATH=SITE

Versions are the lock's. Downloads only: installs nothing here, and refuses to leave more than can be carried.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "lock.txt"
LACKING = ("bitsandbytes", "trl", "datasets", "dill", "multiprocess", "pydantic", "pydantic-core", "annotated-types",
           "typing-inspection", "liger-kernel")
"""Of the lock, what machines that come with torch lack; and liger-kernel, which is no part of it, as it comes."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST = 60e6
"""Bytes in all."""


def pinned(name: str) -> str:
    """NAME==VERSION where the lock has it, else the name."""
    found = re.search(rf"^{re.escape(name)}==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return f"{name}=={found[1]}" if found else name


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the version there")
    options = parser.parse_args()
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation",
         "cp", "--python-version", options.python, *platforms, "--dest", str(options.folder), *map(pinned, LACKING)],
        check=True)
    files = sorted(options.folder.glob("*.whl"))
    total = sum(file.stat().st_size for file in files)
    for file in files:
        print(f"{file.stat().st_size / 1e6:6.1f} MB  {file.name}")
    print(f"{total / 1e6:6.1f} MB in all")
    if total > MOST:
        print(f"more than the {MOST / 1e6:.0f} MB that can be carried", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
