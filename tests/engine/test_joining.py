import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from channelwise.engine.joining import joined_world
from channelwise.engine.launch import Launch, is_launched, launch_of
from channelwise.engine.pulse import Pace
from channelwise.engine.world import ALONE, World
from channelwise.errors import InputError
from tests.engine.ranks import Ended, Ranks, launch_variables, run_ranks, started_ranks, torchrun

QUICK = Pace(period=0.1, limit=1.0, grace=0.5)
PATIENT = Pace(period=0.5, limit=1000.0, grace=30.0)
"""The main thread ends by itself; silence and the end by force play no part."""
FORCED = Pace(period=0.5, limit=1000.0, grace=2.0)
HOST = socket.gethostname()


# What the environment says.


def test_without_torchruns_variables_a_process_is_alone() -> None:
    assert launch_of({"PATH": "/bin", "RANK": ""}) is None
    with joined_world("cpu", environ={}) as world:
        assert world is ALONE


def test_one_process_under_torchrun_is_alone_too() -> None:
    with joined_world("cuda", environ=launch_variables(0, 1, 29500)) as world:
        assert world is ALONE
    assert not dist.is_initialized()


def test_a_complete_environment_is_a_launch() -> None:
    environ = {**launch_variables(1, 2, 29500), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x"}
    assert launch_of(environ) == Launch(1, 1, 2, "127.0.0.1", 29500, "x/", agent=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"MASTER_PORT": None, "MASTER_ADDR": None}, "WORLD_SIZE are set in the environment, but not MASTER_ADDR and"),
        ({"LOCAL_RANK": None}, "but not LOCAL_RANK"),
        ({"RANK": "2"}, "RANK=2 in the environment should be 0 to 1, WORLD_SIZE is 2"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 in the environment should be 0 to 1"),
        ({"RANK": "-1"}, "RANK=-1 "),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment should be 1 or more"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two "),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 in the environment should be 1 to 65535"),
    ],
)
def test_an_incomplete_environment_is_refused(changed: dict[str, str | None], message: str) -> None:
    merged = {**launch_variables(1, 2, 29500), **changed}
    with pytest.raises(InputError, match=message) as refused, joined_world("cpu", environ=_without_none(merged)):
        pass
    assert "torchrun --nproc-per-node N -m channelwise quantize" in str(refused.value)
    assert "\n" not in str(refused.value)


def _without_none(environ: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if value is not None}


@pytest.mark.parametrize(
    ("environ", "launched"),
    [
        ({}, False),
        (launch_variables(0, 1, 29500), False),
        (launch_variables(0, 2, 29500), True),
        (launch_variables(1, 2, 29500), True),
        ({"RANK": "1"}, True),
        ({"MASTER_ADDR": "host"}, False),
    ],
)
def test_other_verbs_can_ask_whether_they_run_several_times(environ: dict[str, str], launched: bool) -> None:
    assert is_launched(environ) is launched


def test_the_environment_is_read_without_torch() -> None:
    program = "sys.argv = ['channelwise']"  # otherwise the package registers its plugin for transformers
    code = f"import sys; {program}; import channelwise.engine.launch; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", "several processes take one GPU each, say --device cuda"),
        ("mps", "several processes work on cpu or cuda"),
    ],
)
def test_a_device_that_processes_cannot_share_is_refused(device: str, message: str) -> None:
    with pytest.raises(InputError, match=message), joined_world(device, environ=launch_variables(0, 2, 29500)):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    expected = f"LOCAL_RANK is 1, but {HOST} has 1 GPUs: say `torchrun --nproc-per-node 1 …`"
    with pytest.raises(InputError, match=expected), joined_world("cuda", environ=launch_variables(1, 2, 29500)):
        pass


# Finding each other.


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is taken, but where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(InputError) as refused, joined_world("cpu", environ=environ, patience=0.2):
        pass
    assert not dist.is_initialized()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_store_that_nobody_keeps_is_told(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert f"nothing answers at MASTER_ADDR:MASTER_PORT 127.0.0.1:{port} within" in refusal(
        launch_variables(1, 2, port)
    )
    assert capfd.readouterr().err == ""


def test_an_unknown_host_is_told(port: int) -> None:
    environ = {**launch_variables(1, 2, port), "MASTER_ADDR": "no-such-host.invalid"}
    assert "MASTER_ADDR=no-such-host.invalid is no known host" in refusal(environ)


def test_a_port_that_is_taken_is_told(port: int) -> None:
    assert f"the run's store at 127.0.0.1:{port} cannot be opened" in refusal(launch_variables(0, 2, port))


def test_a_rank_that_does_not_come_is_named() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=9))
    environ = {**launch_variables(0, 3, store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert "rank 1, 2 of WORLD_SIZE=3 did not join within 1 s" in refusal(environ)


def place(world: World) -> list[int]:
    return [world.rank, world.size]


def test_processes_find_each_other_without_torchrun() -> None:
    with started_ranks(place, 2, agent=False) as ranks:
        ended = [ranks.ended(rank) for rank in range(2)]
    assert [(end.status, end.result, end.stderr) for end in ended] == [(0, [0, 2], ""), (0, [1, 2], "")]


# Losing each other. Ranks say "ready" when the test may disturb them.


def wait_for_others(world: World, absent: int, elsewhere: bool) -> None:
    """All but one rank wait for it in a collective, or compute elsewhere; it never comes."""
    world.barrier()
    print("ready", flush=True)
    if world.rank == absent or elsewhere:
        _sleep()
    world.barrier()


def _sleep() -> None:
    time.sleep(1000)


@contextlib.contextmanager
def disturbed(pace: Pace, absent: int = 1, elsewhere: bool = False, agent: bool = True) -> Iterator[Ranks]:
    with started_ranks(wait_for_others, 3, absent, elsewhere, pace=pace, agent=agent) as ranks:
        ranks.wait_until(lambda: all("ready" in ranks.said(rank) for rank in range(3)))
        yield ranks


def lost_line(end: Ended, who: str) -> bool:
    """Whether the rank told just this, in one line."""
    (line,) = [line for line in end.stderr.splitlines() if line]
    told = f"another process of this run has stopped ({who}" in line and line.endswith("with --resume")
    return end.status == 1 and told


def test_a_killed_rank_ends_those_that_wait_for_it() -> None:
    with disturbed(PATIENT) as ranks:
        ranks.send(1, signal.SIGKILL)
        for rank in (0, 2):
            assert lost_line(ranks.ended(rank), f"rank 1 on {HOST}")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_stopped_rank_ends_the_others(elsewhere: bool) -> None:
    with disturbed(QUICK, elsewhere=elsewhere) as ranks:
        ranks.send(1, signal.SIGSTOP)
        for rank in (0, 2):
            assert lost_line(ranks.ended(rank), f"rank 1 on {HOST}")
        ranks.send(1, signal.SIGCONT)
        assert ranks.ended(1).status == 1


def test_a_signal_reaches_a_rank_within_a_collective() -> None:
    with disturbed(FORCED) as ranks:
        ranks.send(1, signal.SIGSTOP)
        ranks.send(0, signal.SIGTERM)
        assert lost_line(ranks.ended(0), f"rank 1 on {HOST}, silent for")


def test_a_rank_ended_for_another_ones_death_says_so() -> None:
    with disturbed(PATIENT, elsewhere=True) as ranks:
        ranks.send(1, signal.SIGKILL)
        ranks.send(0, signal.SIGTERM)
        assert lost_line(ranks.ended(0), f"rank 1 on {HOST}, silent for")


def test_a_signal_for_all_is_an_interruption() -> None:
    with disturbed(PATIENT) as ranks:
        for rank in range(3):
            ranks.send(rank, signal.SIGTERM)
        assert {ranks.ended(rank).stderr for rank in range(3)} == {"KeyboardInterrupt: 15\n"}


def test_one_interrupted_rank_ends_the_others() -> None:
    with disturbed(PATIENT) as ranks:
        ranks.send(1, signal.SIGTERM)
        assert lost_line(ranks.ended(0), f"rank 1 on {HOST}, interrupted)")


def test_the_end_of_the_rank_that_keeps_the_store_is_told() -> None:
    with disturbed(PATIENT, absent=0, agent=False) as ranks:
        ranks.send(0, signal.SIGKILL)
        assert f"has stopped (rank 0 on {HOST}" in ranks.ended(1).stderr
        assert ranks.ended(1).status == 1


def fail(world: World) -> None:
    if world.rank == 1:
        raise RuntimeError("something else")
    world.barrier()


def test_an_error_of_one_rank_stays_its_own_and_ends_the_others() -> None:
    with started_ranks(fail, 3, pace=PATIENT) as ranks:
        assert ranks.ended(1).stderr == "RuntimeError: something else\n"
        for rank in (0, 2):
            assert lost_line(ranks.ended(rank), f"rank 1 on {HOST}")


def leave_without_the_others(world: World) -> None:
    """Rank 1 ends while the others already leave."""
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_dies_while_the_others_leave_is_told() -> None:
    with started_ranks(leave_without_the_others, 2, pace=PATIENT) as ranks:
        assert lost_line(ranks.ended(0), f"rank 1 on {HOST}")


def mistake(world: World) -> None:
    world.total(torch.zeros(2, 2).to_sparse())


def test_a_mistake_is_no_loss() -> None:
    with started_ranks(mistake, 2, pace=QUICK) as ranks:
        assert "another process" not in ranks.ended(0).stderr + ranks.ended(1).stderr


def compute_long(world: World, seconds: float) -> list[float]:
    if world.rank == 1:
        time.sleep(seconds)
    return world.totals([1.0])


def test_a_rank_that_computes_longer_than_the_limit_is_waited_for() -> None:
    limit = 2.0
    assert run_ranks(compute_long, 2, 1.5 * limit, pace=Pace(0.1, limit)) == [[2.0], [2.0]]


# The real launcher.

SCRIPT = r"""
import sys
from channelwise.engine.joining import joined_world
from channelwise.engine.pulse import Pace
with joined_world("cpu") as world:
    world.barrier()
with joined_world("cpu", pace=Pace(0.2, 2.0, 1.0)) as world:  # once more, in the same processes
    sys.stdout.write(f"sum {world.totals([world.rank + 1.0])}\n")  # in one piece
    if "wait" in sys.argv and world.rank == 1:
        __import__("time").sleep(1000)
    world.barrier()
"""


def test_torchrun_starts_the_ranks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(2, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["sum [3.0]"] * 2


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces, joined by one cable: 10.77.0.1 and 10.77.0.2 on their `cable`."""
    names = (f"channelwise-a-{os.getpid()}", f"channelwise-b-{os.getpid()}")
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux, ip and root")
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("network namespaces are not allowed here")
        cable = ("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        subprocess.run(["ip", *cable], check=True)
        for number, name in enumerate(names, start=1):
            _ip(name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            _ip(name, "link", "set", "cable", "up")
            _ip(name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(host: str, *arguments: str) -> None:
    subprocess.run(["ip", "-n", host, *arguments], check=True)


def test_two_hosts_work_together_until_their_cable_is_cut(hosts: tuple[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    logs = [tmp_path / f"{host}.log" for host in hosts]
    started = [_start_on(host, number, script, log) for number, (host, log) in enumerate(zip(hosts, logs, strict=True))]
    try:
        _wait_for("sum [3.0]", logs)
        _ip(hosts[0], "link", "set", "cable", "down")
        _wait_for("another process of this run has stopped (", logs)
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "(rank 1 on " in logs[0].read_text()
    assert "(torchrun's store at 10.77.0.1:" in logs[1].read_text()


def _start_on(host: str, number: int, script: Path, log: Path) -> subprocess.Popen[bytes]:
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "test")
    # Both namespaces have this machine's name, by which torchrun would find out on which host the store is.
    place = ("--rdzv-conf", f"is_host={'false' if number else 'true'}", "--local-addr", f"10.77.0.{number + 1}")
    run = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")
    with log.open("wb") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *run, *rendezvous, *place, script, "wait"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"},
            start_new_session=True,
        )


def _wait_for(text: str, logs: list[Path]) -> None:
    end = time.monotonic() + 120
    while not all(text in log.read_text() for log in logs):
        assert time.monotonic() < end, [log.read_text()[-2000:] for log in logs]
        time.sleep(0.1)
