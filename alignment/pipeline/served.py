"""The `Serving` of a run: which of its artifacts are served, all finished. Opens and serves nothing."""

from __future__ import annotations

from alignment.artifacts import Store
from alignment.config import Run
from alignment.config.serve import Serve, Serving, served
from alignment.errors import ArtifactError, ConfigError
from alignment.pipeline.keys import keys


def serving(run: Run) -> Serving:
    """What a replica has to know to serve the run's models.

    Raises:
        ConfigError: it makes none.
        ArtifactError: they are not all finished; says which are missing.
    """
    names = served(run)
    if not names:
        raise ConfigError("the run makes no model that could be served", where="serve.models", found=run.name,
                          expected="a run with a train stage, or `models`")
    store, known = Store(run.store), keys(run)
    models = {name: known[stage].key for name, stage in names.items()}
    if missing := [f"{names[name]} ({key})" + (f" as {name}" if name != names[name] else "")
                   for name, key in models.items() if store.find(key) is None]:
        raise ArtifactError("models that are to be served are not finished", where=store.url_of("artifacts"),
                            found=", ".join(missing), expected="all of " + ", ".join(dict.fromkeys(names.values())),
                            hint="kubealign run makes what is missing")
    return Serving(store=store.url, models=models, compute=run.compute,
                   serve=(run.serve or Serve()).model_copy(update={"models": None}))
