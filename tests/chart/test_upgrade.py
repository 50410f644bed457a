"""An upgrade changes what it names: running jobs, claims and the definition of AlignmentRun are not touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.chart.rendered import CHART, objects, template


def _by_name(chart: Path, values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    done = template(chart, "values-dev.yaml", {"cache": {"enabled": True}, **values})
    assert done.returncode == 0, done.stderr
    return {(found["kind"], found["metadata"]["name"]): found for found in objects(done.stdout)}


def _changed(before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_a_new_control_image_touches_the_operator_alone() -> None:
    changed = _changed(_by_name(CHART, {}), _by_name(CHART, {"images": {"control": "repo/control:0.2.0"}}))
    assert changed == {("Deployment", "kubealign-operator"), ("Pod", "kubealign-test-storage")}


def test_other_resources_of_the_operator_touch_it_alone() -> None:
    resources = {"operator": {"resources": {"limits": {"memory": "3Gi"}}}}
    assert _changed(_by_name(CHART, {}), _by_name(CHART, resources)) == {("Deployment", "kubealign-operator")}


def test_a_new_chart_version_alone_touches_nothing(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    file = tmp_path / "chart" / "Chart.yaml"
    meta = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**meta, "version": "9.9.9", "appVersion": "9.9.9"}), encoding="utf-8")
    assert _changed(_by_name(CHART, {}), _by_name(tmp_path / "chart", {})) == set()


def test_a_new_train_image_leaves_running_ray_pods_alone() -> None:
    """KubeRay replaces pods of a changed RayCluster only with upgradeStrategy Recreate."""
    before, after = _by_name(CHART, {}), _by_name(CHART, {"images": {"train": "repo/train:0.2.0"}})
    assert _changed(before, after) == {("RayCluster", "kubealign"), ("Pod", "kubealign-test-all-reduce")}
    assert after["RayCluster", "kubealign"]["spec"]["upgradeStrategy"] == {"type": "None"}


def test_selectors_that_cannot_be_changed_do_not_depend_on_values() -> None:
    selector = _by_name(CHART, {})["Deployment", "kubealign-operator"]["spec"]["selector"]
    labels = {"app.kubernetes.io/part-of": "kubealign", "kubealign.dev/component": "operator"}
    assert selector == {"matchLabels": labels}
