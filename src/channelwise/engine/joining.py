"""Joining the processes that torchrun started into one world, and leaving it."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from channelwise.engine.heartbeat import Heartbeat, arriving_signals
from channelwise.engine.launch import HINT, Launch, is_launched, launch_of
from channelwise.engine.pulse import UNKNOWN, Pace, Pulse, RankLostError, State, pulse_key
from channelwise.engine.world import ALONE, Links, ToldByRankZero, World
from channelwise.errors import InputError

__all__ = ["is_launched", "joined_world"]

_PATIENCE = 60.0
"""Seconds in which the run's store must answer, all processes join and connect to each other."""
_JOINING = 5
"""Times as long may pass until the last rank is there: one machine may read the program from a slow disk."""
_RETRY = 0.5
_UNLIMITED = timedelta(days=30)
"""Of one collective: a rank may compute for long while the others wait, and the heartbeat tells who has stopped."""
_TELLING = 1.0
"""Seconds that the other ranks leave rank 0 to tell an error: torchrun stops all when the first one exits."""


@contextlib.contextmanager
def joined_world(
    device: str, *, pace: Pace | None = None, patience: float = _PATIENCE, environ: Mapping[str, str] | None = None
) -> Iterator[World]:
    """The world of the processes that torchrun started, within the `with`; ALONE for a single process.

    device: "cpu" (gloo) or "cuda" (nccl, each process with the GPU of its LOCAL_RANK). pace and patience: seconds,
    see there. environ: os.environ.

    Raises InputError if the environment is incomplete or the processes do not find each other. Within, a rank that
    stops ends the others: by RankLostError, or, where the main thread cannot be reached, by one line on standard
    error and exit status 1. SIGTERM that comes because another rank has stopped becomes RankLostError, too.
    """
    launch = launch_of(os.environ if environ is None else environ)
    if launch is None or launch.size == 1:
        yield ALONE
        return
    place = _place(device, launch)
    with arriving_signals() as signals:
        store, heartbeat = _roll_call(launch, _open_store(launch, patience), patience, pace or Pace(), signals)
        world = _connected(launch, place, store, heartbeat, patience)
        try:
            yield world
            world.barrier()
        except BaseException as error:
            _leave_for(error, world, heartbeat)
            raise
        _leave(heartbeat)


def _place(device: str, launch: Launch) -> torch.device:
    """Where this rank's collectives run."""
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return wanted
    if wanted.type != "cuda":
        raise InputError(f"--device {device}: several processes work on cpu or cuda")
    if wanted.index is not None:
        raise InputError(f"--device {device}: several processes take one GPU each, say --device cuda")
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        raise InputError(
            f"LOCAL_RANK is {launch.local_rank}, but {socket.gethostname()} has {count} GPUs: "
            f"say `torchrun --nproc-per-node {max(count, 1)} …`, or --device cpu"
        )
    place = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(place)
    return place


def _open_store(launch: Launch, patience: float) -> dist.Store:
    """A connection to the store, which rank 0 keeps unless the launcher does."""
    keeps = launch.rank == 0 and not launch.agent
    if not keeps:
        _reach(launch, patience)
    return _store(launch, patience, keeps)


def _store(launch: Launch, patience: float, keeps: bool) -> dist.Store:
    try:
        return dist.TCPStore(
            launch.address,
            launch.port,
            is_master=keeps,
            wait_for_workers=False,
            timeout=timedelta(seconds=patience),
        )
    except RuntimeError as error:
        verb = "opened" if keeps else "used"
        raise InputError(
            f"the run's store at {launch.store_address} cannot be {verb} ({_brief(error)}): {HINT}"
        ) from error


def _reach(launch: Launch, patience: float) -> None:
    """Waits until something listens at the store's address; torch's own trials tell each failure at length."""
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((launch.address, launch.port), timeout=max(end - time.monotonic(), 0.1)).close()
            return
        except socket.gaierror as error:
            raise InputError(f"MASTER_ADDR={launch.address} is no known host ({error.strerror}): {HINT}") from error
        except OSError as error:
            if time.monotonic() + _RETRY > end:
                raise InputError(
                    f"nothing answers at MASTER_ADDR:MASTER_PORT {launch.store_address} within {patience:.0f} s "
                    f"({error.strerror or error}): {HINT}"
                ) from error
            time.sleep(_RETRY)


def _roll_call(
    launch: Launch, store: dist.Store, patience: float, pace: Pace, signals: socket.socket | None
) -> tuple[dist.Store, Heartbeat]:
    """Waits until all ranks are there; the part of the store that is this run's, and the heartbeat to be started."""
    try:
        # A process may join more than once, one time after the other: each has its own part of the store.
        time_of_joining = store.add(f"channelwise/{launch.run}/{launch.rank}", 1)
        prefix = f"channelwise/{launch.run}/{time_of_joining}"
        own = dist.PrefixStore(prefix, store)
        own.set(pulse_key(launch.rank), Pulse(0, State.RUNNING, launch.rank).text())
        own.set(f"host/{launch.rank}", socket.gethostname())
        _await_all(launch, own, _JOINING * patience)
        hosts = [host.decode() for host in own.multi_get([f"host/{rank}" for rank in range(launch.size)])]
        second = dist.PrefixStore(prefix, _store(launch, patience, keeps=False))
    except RuntimeError as error:
        raise InputError(f"the run's store at {launch.store_address} has gone ({_brief(error)})") from error
    keeper = f"torchrun's store at {launch.store_address}" if launch.agent else f"rank 0 on {hosts[0]} with the store"
    return own, Heartbeat(second, launch.rank, hosts, keeper, pace, signals)


def _await_all(launch: Launch, store: dist.Store, seconds: float) -> None:
    """Looks again and again, because a wait of the store's own would not hear Ctrl-C."""
    end = time.monotonic() + seconds
    absent = list(range(launch.size))
    while absent:
        absent = [rank for rank in absent if not store.check([f"host/{rank}"])]
        if absent and time.monotonic() > end:
            ranks = ", ".join(map(str, absent))
            raise InputError(
                f"rank {ranks} of WORLD_SIZE={launch.size} did not join within {seconds:.0f} s; "
                f"see its messages: {HINT}"
            )
        if absent:
            time.sleep(_RETRY / 10)


def _connected(launch: Launch, place: torch.device, store: dist.Store, heartbeat: Heartbeat, patience: float) -> World:
    """Connects the ranks to each other: quickly, or not at all; what follows may take its time."""
    backend = "nccl" if place.type == "cuda" else "gloo"
    if dist.is_initialized():
        raise InputError("torch.distributed is in use in this process already; leave its process group first")
    heartbeat.start()
    try:
        with heartbeat.waiting():
            dist.init_process_group(
                backend, store=store, rank=launch.rank, world_size=launch.size, timeout=timedelta(seconds=patience)
            )
            group = dist.new_group(timeout=_UNLIMITED, backend=backend)
    except BaseException as error:
        heartbeat.say(State.FAILED)
        heartbeat.stop()
        if not isinstance(error, RuntimeError):
            raise
        raise InputError(
            f"the {launch.size} processes cannot connect to each other ({_brief(error)}): "
            f"name the network between the machines by {backend.upper()}_SOCKET_IFNAME"
        ) from error
    return World(launch.rank, launch.size, place, Links(group, heartbeat))


def _leave(heartbeat: Heartbeat) -> None:
    """All leave together: no connection closes before everyone has said so."""
    heartbeat.say(State.LEFT)
    heartbeat.stop()
    dist.destroy_process_group()


def _leave_for(error: BaseException, world: World, heartbeat: Heartbeat) -> None:
    """Leaves with an error; raises RankLostError in its place if another rank's end is what it comes from.

    The process group is left as it is: torch waits without end for what is under way in it, and the process ends.
    """
    if heartbeat.agreed and isinstance(error, InputError):
        _leave_together(error, world, heartbeat)
        return
    lost = None
    if isinstance(error, KeyboardInterrupt):
        heartbeat.say(State.INTERRUPTED)
        # torchrun stops the others so when one has ended. Ctrl-C is the user's.
        lost = heartbeat.loss() if error.args == (signal.SIGTERM,) else None
    elif not isinstance(error, RankLostError):
        heartbeat.say(State.FAILED)
    if lost is not None:
        heartbeat.say(State.FAILED, UNKNOWN if lost.rank is None else lost.rank)
    heartbeat.stop()
    if world.device.type == "cuda" and world.links is not None:
        with contextlib.suppress(RuntimeError):
            world.links.group.abort()
    if lost is not None:
        raise lost from error


def _leave_together(error: InputError, world: World, heartbeat: Heartbeat) -> None:
    """Leaves with an error that all ranks have agreed on."""
    try:
        world.barrier()
    except RankLostError:
        heartbeat.stop()
    else:
        _leave(heartbeat)
    if isinstance(error, ToldByRankZero):
        time.sleep(_TELLING)


def _brief(error: Exception) -> str:
    """The first line of torch's message, without places in C++."""
    lines = re.sub(r"\[\S+\.(cc|cpp):\d+\] *", "", str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
