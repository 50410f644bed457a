"""The operator: makes the stages of AlignmentRuns one RayJob at a time. Their types are `manifests.alignment_run`.

    plan.py       what is to be: stages, keys, gates
    world.py      what is seen: children and finished artifacts (served.py: a RayService and its revisions)
    reconcile.py  all decisions, pure (rows.py one stage, verdict.py the whole, serving.py what is served)
    prepare.py    a spec read and checked -> the plan
    reads.py      where it may read
    apart.py      processes that are ended when a spec or a store takes too long
    controller.py sees, decides and acts, one run at a time (services.py: its RayService)
    api.py, seen.py, store.py, metrics.py   requests, copies of what was seen, artifacts, numbers
    shell.py      kopf
    crd.py        the CustomResourceDefinition

Launched as `python -m alignment.cluster.operator`.
"""
