"""The operator: `python -m alignment.cluster.operator`, for one namespace, one replica.

    POD_NAMESPACE or --namespace    where AlignmentRuns are looked after
    $KUBEALIGN_READS or --reads     where stores and sources may lie: absolute folders and URLs
    :8080/healthz                   liveness (--liveness)
    :9090/metrics                   Prometheus (--metrics-port)

Runs until SIGTERM; may be killed at any moment. Uses the pod's service account, or KUBECONFIG outside a cluster.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import kopf

from alignment.cluster.operator.reads import readable
from alignment.cluster.operator.shell import operator


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run. Returns 2 for a command line that lacks something."""
    parser = argparse.ArgumentParser(prog="python -m alignment.cluster.operator", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", default=os.environ.get("POD_NAMESPACE"), help="default: $POD_NAMESPACE")
    parser.add_argument("--liveness", default="http://0.0.0.0:8080/healthz", help="default: %(default)s")
    parser.add_argument("--metrics-port", type=int, default=9090, help="default: %(default)s")
    parser.add_argument("--reads", nargs="+", metavar="PREFIX", default=os.environ.get("KUBEALIGN_READS", "").split(),
                        help="where the operator may read; default: $KUBEALIGN_READS, parted by blanks")
    arguments = parser.parse_args(argv)
    if not arguments.namespace:
        parser.error("which namespace? give --namespace, or set POD_NAMESPACE")
    if not arguments.reads:
        parser.error("where may it read? give --reads /artifacts or s3://bucket/prefix, or set KUBEALIGN_READS")
    try:
        reads = readable(arguments.reads)
    except ValueError as error:
        parser.error(f"--reads: {error}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    registry, settings = operator(arguments.namespace, reads, metrics_port=arguments.metrics_port)
    kopf.run(registry=registry, settings=settings, namespaces=[arguments.namespace], standalone=True,
             liveness_endpoint=arguments.liveness)
    return 0


if __name__ == "__main__":
    sys.exit(main())
