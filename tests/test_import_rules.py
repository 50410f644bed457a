"""The rooms' rules hold, the rules can fail, and the light rooms import where torch and its kin are not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT = ("artifacts", "checks", "cli", "cluster", "config", "data", "pipeline", "planner", "records", "reference",
         "report", "rewards", "templates")
TRAIN_EXTRA = ("torch", "ray", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers",
               "huggingface_hub", "gguf", "rouge_score", "pyarrow", "s3fs")
IMPORT_ALL = """
import importlib, pkgutil, sys
rooms, absent = sys.argv[1].split(","), sys.argv[2].split(",")
for name in absent:
    sys.modules[name] = None  # importing it raises ImportError
import alignment, alignment.context, alignment.progress
count = 0
for room in rooms:
    package = importlib.import_module(f"alignment.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()",
         "--config", str(ROOT / "importlinter.ini"), "--no-cache"],
        cwd=folder, capture_output=True, text=True, check=False,
    )


def test_the_rules_hold() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("file", "line", "broken"), [
    ("config/aims.py", "import torch", "no torch"),
    ("records/files.py", "from alignment.data import text", "A lower row never imports a higher one"),
    ("training/methods/sft.py", "import ray", "Only distributed imports ray"),
    ("evaluation/metrics.py", "import trl", "import trl"),
    ("sampling/batch.py", "from alignment.inference import loading", "Only inference opens models"),
    ("artifacts/store.py", "import kubernetes", "Only cluster imports Kubernetes"),
    ("cluster/manifests/pods.py", "import ray", "no torch"),
    ("cluster/manifests/pods.py", "from alignment.cli import show", "A lower row never imports a higher one"),
    ("cluster/client/forward.py", "import ray", "Only distributed imports ray"),
    ("cluster/submit/ray_jobs.py", "import alignment.distributed.submit", "Only distributed imports ray"),
    ("cluster/manifests/pods.py", "import kubernetes", "needs no Kubernetes client"),
    ("cluster/status/reading.py", "from alignment.cluster.client import client", "plain dicts below"),
    ("cluster/preflight/inside.py", "from alignment.cluster.client import client", "needs no Kubernetes client"),
    ("cluster/watch/wait.py", "import kubernetes", "only client imports the Kubernetes client"),
    ("cluster/watch/live.py", "from alignment.cluster.storage import truth", "plain dicts below"),
    ("cluster/submit/cancel.py", "from alignment.cluster.operator import world", "neighbours don't know each other"),
    ("cluster/room_of_its_own.py", "", "plain dicts below"),
    ("cluster/operator/verdict.py", "from alignment.cluster.operator import controller", "plain facts"),
    ("cluster/operator/rows.py", "import tempfile", "decisions read no files"),
    ("cluster/operator/verdict.py", "from alignment.pipeline.keys import keys", "decisions read no files"),
    ("cluster/manifests/alignment_run.py", "from alignment.cluster.manifests import bundle", "decisions read no files"),
    ("cluster/operator/controller.py", "import kopf", "shell and its launcher import kopf"),
    ("exits.py", "import alignment.errors", "rooms of one row don't know each other"),
    ("room_of_its_own.py", "", "A lower row never imports a higher one"),
])
def test_a_broken_rule_is_noticed(file: str, line: str, broken: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "alignment", tmp_path / "alignment", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "alignment" / file
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    done = _lint(tmp_path)
    assert done.returncode == 1
    report = done.stdout.split("Broken contracts")[-1]
    assert broken in " ".join(report.split()), done.stdout


def test_light_rooms_import_without_the_training_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, ",".join(LIGHT), ",".join(TRAIN_EXTRA)],
                          capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
