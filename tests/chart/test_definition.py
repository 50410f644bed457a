"""The definition of AlignmentRun comes whole through Helm, which reads YAML by other rules than Python does."""

from __future__ import annotations

import yaml

from alignment.cluster.operator.crd import definition
from tests.chart.rendered import of_set, one


def test_helm_renders_the_definition_as_the_models_make_it() -> None:
    made = definition()
    rendered = one(of_set("values.yaml"), "CustomResourceDefinition", made["metadata"]["name"])
    assert rendered["spec"] == yaml.safe_load(yaml.safe_dump(made["spec"]))
