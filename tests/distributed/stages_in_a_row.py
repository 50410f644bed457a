"""What a group of workers does for test_sharding.py: several stages in a row, since a group takes long to start.

In a file of its own, so that workers need no pytest.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

STOP_AFTER = 3
"""Steps of a stage that is cut short; it has a checkpoint of step 2."""


def loop(config: dict[str, Any]) -> None:
    """Train `contexts` in turn: (name, context, how it ends), and leave what each rank met in `told`.

    A stage ends `whole`, is `cut` short on every rank in a step or `left` at the begin of one, ends with a `kill` of
    the second, is `refused`, or has weights that are not finite on the second rank alone: `poisoned`.
    """
    import torch.distributed as dist
    from transformers import TrainerCallback

    from alignment.errors import KubeAlignError
    from alignment.training import fit as module

    rank, told = dist.get_rank(), Path(config["told"])

    class Cut(Exception):
        pass

    class Ends(TrainerCallback):
        def __init__(self, how: str) -> None:
            self.how = how

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if self.how == "left" and state.global_step == STOP_AFTER:
                raise Cut
            if self.how == "poisoned" and rank == 1 and state.global_step == 1:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step != STOP_AFTER:
                return
            if self.how == "cut":
                raise Cut
            if self.how == "kill" and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    prepare = module.prepare

    def counted(*args: Any, **kwargs: Any) -> Any:
        with (told / f"tokenized-{rank}").open("a") as file:
            file.write("x")
        return prepare(*args, **kwargs)

    module.prepare = counted
    if config["talk"]:
        talk(told, rank)
    for name, context, how in config["contexts"]:
        if rank == 0:
            context.out.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        started = time.monotonic()
        try:
            module.fit(context, workers=dist.get_world_size(), callbacks=(Ends(how),))
        except Cut:
            pass
        except KubeAlignError as error:
            (told / f"{name}-{rank}").write_text(str(error))
            if how != "refused":
                raise
        with (told / "seconds").open("a") as file:
            file.write(json.dumps([name, rank, round(time.monotonic() - started, 2)]) + "\n")


def talk(told: Path, rank: int) -> None:
    """What ranks find out about each other, each once right and once wrong."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from alignment.errors import StageError
    from alignment.training import ranks

    def said(name: str, call: Any) -> None:
        try:
            call()
            text = "nothing"
        except StageError as error:
            text = f"{error}"
        (told / f"{name}-{rank}").write_text(text)

    def waits() -> None:
        with ranks.naming_the_silent():
            if rank == 0:
                dist.all_reduce(torch.ones(1), group=impatient)

    def fails() -> None:
        step = 2 if rank == 0 else 1
        raise ranks.first_to_fail(step, StageError("the loss is not finite", where=f"step {step}, rows of rank {rank}"))

    dist.barrier()  # the group's own start has no more time than its collectives
    impatient = dist.new_group(timeout=timedelta(seconds=5))
    ranks.begin("talk")
    said("alike", lambda: ranks.meet("same"))
    said("agreed", lambda: ranks.agree("colour", {"colour": "blue", "host": rank}))
    said("apart", lambda: ranks.agree("colour", {"colour": ("blue", "red")[rank]}))
    said("failing", fails)
    ranks.begin("silent")
    if rank == 0:
        said("silent", lambda: ranks.meet("same", timeout=1.0))
    else:
        ranks.pulse(7)
    dist.barrier()
    said("hanging", waits)
    time.sleep(6 * rank)
    dist.barrier()
    ranks.begin("unlike")
    said("unlike", lambda: ranks.meet(f"digest of {rank}"))
    dist.barrier()


def rank_of_two(rank: int, port: int, config: dict[str, Any]) -> None:
    """`loop` as one of two processes of this machine, without Ray."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    loop(config)
    dist.barrier()
    dist.destroy_process_group()
