"""Several processes that do one thing: which of them this one is, and how a command line becomes several of itself.

torchrun and SLURM say it in the environment; `--devices` without either starts torchrun's agent here, which watches what it has
started and ends all where one dies. What they compute together is what one would: training shares each batch
(`data/batches.py`), verification the cases.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError, reason

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

T = TypeVar("T")

AGAIN = "run the same command again"
GO_ON = "add --resume to the same command to go on from the last checkpoint"
ANSWER_WITHIN = timedelta(minutes=10)  # a process that is silent for longer is taken for dead
_PATIENCE = 2.0  # seconds: an agent looks ten times a second


@dataclass(frozen=True)
class Processes:
    """Those that work together: `here` on each of `nodes` machines. `rank` is the number of this one, 0 of the first, which
    alone writes and speaks; `by` says who has started them, if anyone has.
    """

    rank: int = 0
    here: int = 1
    nodes: int = 1
    by: str | None = None

    @property
    def count(self) -> int:
        return self.here * self.nodes

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, device: str) -> str:
        """Of the devices of a kind the one of this process."""
        return f"cuda:{self.rank % self.here}" if device == "cuda" and self.count > 1 else device


ALONE = Processes()


def processes() -> Processes:
    """As the environment has it: one process, unless torchrun or srun have started this one."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        here = int(env["LOCAL_WORLD_SIZE"])
        return Processes(int(env["RANK"]), here, int(env["WORLD_SIZE"]) // here, "torchrun")
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set for what srun starts, not for the batch script around it
        nodes = int(env["SLURM_STEP_NUM_NODES"])
        return Processes(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]) // nodes, nodes, "SLURM")
    return ALONE


def asked_for(devices: int | None, nodes: int | None) -> Processes:
    """What --devices and --nodes say, left out as None. Raises InputError if others have been started."""
    found = processes()
    if found.by is None:
        return Processes(0, devices or 1, nodes or 1)
    if devices not in (None, found.here) or nodes not in (None, found.nodes):
        raise InputError(
            f"{found.by} has started {found.count} processes, {found.here} a machine: leave --devices and --nodes out"
        )
    return found


def check_shares(team: Processes, *, batch: int, device: str) -> None:
    """Raise InputError if a batch has not a sample for each process, or there are not enough devices."""
    if batch < team.count:
        raise InputError(
            f"a batch of {batch} has nothing for some of {team.count} processes: give --batch {team.count}"
        )
    check_devices(team, device)


def check_devices(team: Processes, device: str) -> None:
    """Raise InputError if there is not one for each process."""
    if team.count == 1 or device == "cpu":
        return
    if device != "cuda":
        raise InputError(f"--device {device} is one device: several processes take --device cuda or cpu")
    import torch

    if team.here > torch.cuda.device_count():
        raise InputError(f"--devices {team.here} is more than the {torch.cuda.device_count()} GPUs of this machine")


def gathered(value: T) -> list[T]:
    """Every process's value, in all of them."""
    team = processes()
    if team.count == 1:
        return [value]
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=ANSWER_WITHIN)
    values: list[Any] = [None] * team.count
    distributed.all_gather_object(values, value)
    return values


def from_the_first(value: T) -> T:
    """The first process's value, in all of them."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


@contextmanager
def together(advice: str) -> Iterator[None]:
    """All enter and leave the block together. Raises InputError with `advice` where one of them is lost, or does not answer."""
    from torch import distributed

    try:
        yield
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()  # an agent ends all where one ends badly
            atexit.unregister(distributed.destroy_process_group)
            atexit.register(distributed.destroy_process_group)
    except RuntimeError as error:
        if processes().count == 1 or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        let_others_speak()
        raise InputError(f"another process was lost: {advice}") from error


def let_others_speak() -> None:
    """Wait where another process, or an agent that ends this one, says better what has happened."""
    time.sleep(_PATIENCE)


def launch(team: Processes, arguments: Sequence[str], *, advice: str) -> int:
    """Run `stormcell` with these arguments in several processes, and return its exit code.

    Only the first one is heard, unless another fails alone. Raises InputError with `advice` if one is killed, and if other
    machines take part and it is not said where they meet, or they do not.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    cores = (os.cpu_count() or 1) // team.here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))  # else each process takes all of them
    logging.disable(logging.CRITICAL)  # the agent's own words are for programmers
    try:
        with tempfile.TemporaryDirectory() as folder:
            redirects = dict.fromkeys(range(1, team.here), Std.ALL)
            config = LaunchConfig(
                team.nodes,
                team.nodes,
                team.here,
                logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=redirects),
                run_id="stormcell",
                max_restarts=0,
                **_meeting(team.nodes),
            )
            # An ignored signal stays ignored: nohup, and jobs in the background of a shell.
            heard = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if _heard(name)]
            config.signals_to_handle = ",".join(heard)
            try:
                elastic_launch(config, sys.executable)("-m", "stormcell", *arguments)
            except SignalException as error:
                return 128 + int(error.sigval)
            except ChildFailedError as error:
                return _told(error, Path(folder), advice)
            except DistError as error:
                raise InputError(
                    f"the machines have not found each other ({reason(error)}): check MASTER_ADDR"
                ) from error
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _heard(name: str) -> bool:
    number = getattr(signal, name, None)  # Windows has not all of them
    return number is not None and signal.getsignal(number) != signal.SIG_IGN


def _meeting(nodes: int) -> dict[str, Any]:
    """Where the agents of all machines find each other."""
    if nodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    try:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '29500')}"
        return {
            "rdzv_backend": "static",
            "rdzv_endpoint": place,
            "rdzv_configs": {"rank": int(os.environ["NODE_RANK"])},
        }
    except (KeyError, ValueError):
        raise InputError(
            "--nodes takes this command on each machine, with MASTER_ADDR (the first one's name) and NODE_RANK (0, 1, …) in "
            "its environment; torchrun and srun set what is needed themselves"
        ) from None


def _told(error: ChildFailedError, folder: Path, advice: str) -> int:
    """The exit code of what has failed, with what a process has said that is not heard by itself."""
    for failure in error.failures.values():
        if failure.local_rank == 0 and failure.exitcode > 0:
            return failure.exitcode
    # Others are ended with SIGTERM, or learn that one is gone: what was killed comes first.
    rank, first = min(
        error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].exitcode > 0)
    )
    if first.exitcode < 0:
        raise InputError(f"process {rank} was killed ({first.signal_name()}): {advice}")
    for path in folder.glob(f"*/*/{first.local_rank}/stderr.log"):
        sys.stderr.write(path.read_text(encoding="utf-8", errors="replace"))
    return first.exitcode
