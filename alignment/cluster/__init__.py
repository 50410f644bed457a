"""Kubernetes: a run and its profile as manifests, a client for a cluster, and the operator. The only room that imports
the Kubernetes client; what a stage computes is decided elsewhere, in pods that run `ray_jobs/`.
"""
