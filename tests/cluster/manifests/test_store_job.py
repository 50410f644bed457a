"""Small Jobs that look into the storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.cluster.manifests.labels import COMPONENT_LABEL, RUN_LABEL
from alignment.cluster.manifests.pods import RUN_FOLDER
from alignment.cluster.manifests.store_job import store_job
from alignment.config import bytes_of, load_profile, load_run
from tests.cluster.policy import templates, violations
from tests.schemas import problems

ROOT = Path(__file__).parents[3]
RUN = load_run(ROOT / "configs/runs/tiny.yaml")
PROFILES = {path.stem: profile for path in sorted((ROOT / "configs/profiles").glob("*.yaml"))
            if (profile := load_profile(path)).cluster is not None}


@pytest.mark.parametrize("where", PROFILES)
def test_store_jobs(where: str) -> None:
    run, profile = RUN, PROFILES[where]
    args = ["kubealign", "report", f"{RUN_FOLDER}/run.yaml"]
    for made in (store_job(profile, name="report", namespace="align", args=args, config_map="tiny-1", run=run),
                 store_job(profile, name="report", namespace="align", args=args)):
        assert problems(made) == []
        assert [text for _, template in templates(made) for text in violations(template)] == []
        [container] = made["spec"]["template"]["spec"]["containers"]
        assert profile.cluster is not None
        assert container["image"] == profile.cluster.images.control
        assert bytes_of(container["resources"]["limits"]["memory"]) <= 2**30
        mounted = RUN_FOLDER in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert mounted == (RUN_LABEL in made["metadata"]["labels"]) == (container["workingDir"] == RUN_FOLDER)
        assert made["metadata"]["labels"][COMPONENT_LABEL] == "store"
