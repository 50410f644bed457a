"""Kubernetes: a run sent to a cluster, followed and stopped there; and the operator. What a stage computes is decided
elsewhere, in pods that run `ray_jobs/`. Layers, which import-linter holds; neighbours don't know each other:

    operator | preflight | submit
    storage             which stages are finished, logs, report
    watch               waits, output as it comes
    client              requests to the API server; alone imports the `kubernetes` package
    manifests | status  plain dicts: what is sent, and what the answers mean
"""
