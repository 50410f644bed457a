"""Which cluster, which account, which namespace: a kubeconfig's context, or the pod's own account where there is none.

Sends nothing to a cluster.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from kubernetes import client as kubernetes
from kubernetes import config as kubernetes_config
from kubernetes.config.config_exception import ConfigException

from alignment.cluster.client.refusals import cluster_error

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connected(context: str | None) -> tuple[kubernetes.ApiClient, str, str]:
    """An API client, the namespace that it is meant for, and its context's name.

    Args:
        context: default: the kubeconfig's current one.

    Raises:
        ClusterError: no kubeconfig, a broken one, or no such context.
    """
    settings = kubernetes.Configuration()
    files = os.environ.get("KUBECONFIG", os.path.expanduser("~/.kube/config"))
    if context is None and not any(Path(name).is_file() for name in files.split(os.pathsep)):
        if not _ACCOUNT.is_file():
            raise cluster_error("there is no kubeconfig", where="KUBECONFIG", found=files,
                                expected="a kubeconfig file", hint="export KUBECONFIG=FILE, or use a profile without "
                                "a cluster")
        kubernetes_config.load_incluster_config(client_configuration=settings)
        space, context = _ACCOUNT.read_text().strip(), "in the cluster"
    else:
        try:
            contexts, active = kubernetes_config.list_kube_config_contexts(files)
            known = {item["name"]: item["context"] for item in contexts}
            context = context or active["name"]
            if context not in known:
                raise cluster_error("the kubeconfig has no such context", where="--context", found=context,
                                    expected="one of " + ", ".join(known))
            kubernetes_config.load_kube_config(files, context=context, client_configuration=settings)
        # The library checks little of what it reads.
        except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise cluster_error(f"the kubeconfig cannot be used: {error}", where=files) from error
        space = str(known[context].get("namespace") or "default")
    settings.retries = False  # Client's own loop says what it waits for; urllib3's own retries only log
    return kubernetes.ApiClient(settings), space, context
