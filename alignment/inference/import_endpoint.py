"""Stage body: an endpoint named as a model. Writes who is asked and how; asks, fetches and loads nothing.

The artifact gives answers of an endpoint a place to come from, so that another model's name or address is another
artifact. Launched by the pipeline for stages of kind import with `model: {source: endpoint}`.
"""

from __future__ import annotations

import json

from alignment.config.stages.endpoint import ImportEndpoint
from alignment.context import Outcome, StageContext
from alignment.inference.usage import TEMPLATE


def import_endpoint(context: StageContext) -> Outcome:
    """Fill `context.out/endpoint.json`.

    Returns:
        facts: source, template. Neither a key nor the name of its variable.
    """
    stage = context.stage_as(ImportEndpoint)
    asked = stage.learned(context.run.scaled)["model"]
    text = json.dumps(asked, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (context.out / "endpoint.json").write_text(text, encoding="utf-8")
    context.event("named", model=stage.model.model, base_url=stage.model.base_url)
    return Outcome(facts={"source": asked, "template": {"name": TEMPLATE}})
