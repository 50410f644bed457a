"""Two workers add up a tensor over gloo, as data-parallel training does; fails unless both hold the sum.

Run by `helm test`: as a Ray job (`all_reduce.py ray`) on the chart's RayCluster, one worker per actor, or as an Indexed
Job (`all_reduce.py HOST:PORT`), one worker per pod. Proves image, network policies and ports; not GPUs or NCCL.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

WORLD = 2
PATIENCE = 180.0  # seconds; the second pod may still be waiting for its image


def all_reduce(address: str, rank: int) -> str:
    """Join the group at `address` (rank 0 listens there) and add up a tensor: a sentence, or RuntimeError."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=WORLD,
                                   timeout=timedelta(seconds=PATIENCE))
    tensor = torch.full((1 << 16,), float(rank + 1))
    distributed.all_reduce(tensor)
    distributed.destroy_process_group()
    expected = float(sum(range(1, WORLD + 1)))
    if not bool((tensor == expected).all()):
        raise RuntimeError(f"rank {rank} got {sorted(set(tensor.tolist()))}, expected {expected} everywhere")
    return f"rank {rank} of {WORLD} on {socket.gethostname()}: all-reduce is right"


def over_ray() -> None:
    """The same in two Ray actors, on two nodes where there are two. Raises TimeoutError without two free CPUs."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Worker:
        def address(self) -> str:
            with socket.socket() as probe:
                probe.bind(("", 0))
                return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

        def work(self, address: str, rank: int) -> str:
            return all_reduce(address, rank)

    ray.init()
    group = placement_group([{"CPU": 1}] * WORLD, strategy="SPREAD")
    if not group.wait(PATIENCE):
        raise TimeoutError(f"no {WORLD} free CPUs within {PATIENCE:.0f} s; the cluster has {ray.cluster_resources()}")
    place = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank) for rank in range(WORLD)]
    workers = [ray.remote(Worker).options(num_cpus=1, scheduling_strategy=where).remote() for where in place]
    address = ray.get(workers[0].address.remote())
    working = [worker.work.remote(address, rank) for rank, worker in enumerate(workers)]
    for sentence in ray.get(working, timeout=PATIENCE):
        print(sentence)


if __name__ == "__main__":
    if sys.argv[1] == "ray":
        over_ray()
    else:
        print(all_reduce(sys.argv[1], int(os.environ["JOB_COMPLETION_INDEX"])))
