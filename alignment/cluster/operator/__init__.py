"""AlignmentRun: a run as a Kubernetes object, and the operator that makes its stages one RayJob at a time.

    types.py      what a user writes and reads
    crd.py        the CustomResourceDefinition made from it
    prepare.py    a spec read and checked: stages, keys, gates
    world.py      what is seen: children and finished artifacts
    reconcile.py  all decisions, pure (rows.py one stage, verdict.py the whole)
    controller.py sees, decides and acts, one run at a time
    api.py, store.py, metrics.py, shell.py   Kubernetes, artifacts, numbers, kopf

Launched as `python -m alignment.cluster.operator`.
"""
