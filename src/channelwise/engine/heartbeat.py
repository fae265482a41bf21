"""One rank's pulse and its watch over the other ranks, while the main thread computes or waits in a collective."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch.distributed as dist

from channelwise.engine.pulse import UNKNOWN, Pace, Pulse, RankLostError, Silences, State, pulse_key

_LOST = 1
"""The exit status of a process that ends because another one has."""

_LOOKS = 5
"""At the others' pulses, after which one that has stopped has been silent for long enough to be suspected."""


class Heartbeat:
    """Two threads: one writes this rank's pulse into the store and reads the others', one judges what was read.

    The second is there because a store may hang, and because the main thread may be in a collective, where neither
    signals nor exceptions reach it. It then says in one line which rank has stopped, and ends the process.

    store: a connection of its own; all ranks' first pulses stand in it. hosts: each rank's machine. keeper: who keeps
    the store, for messages. signals: what `arriving_signals` gives.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        hosts: Sequence[str],
        keeper: str,
        pace: Pace,
        signals: socket.socket | None,
    ) -> None:
        self.rank, self.hosts, self.pace = rank, tuple(hosts), pace
        self.agreed = False
        """Whether all ranks have agreed on an error, and leave together for it."""
        self._store, self._keeper, self._signals = store, keeper, signals
        self._keys = [pulse_key(other) for other in range(len(hosts))]
        self._state, self._cause = State.RUNNING, rank
        self._written: State | None = None
        self._pulses = [Pulse(0, State.RUNNING, other) for other in range(len(hosts))]
        self._silences = Silences(len(hosts), most=2 * pace.period)
        self._store_silence = Silences(1, most=2 * pace.period)
        self._rounds = 0
        self._broken = self._waiting = False
        self._signal = 0
        self._nudged, self._ended = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]

    def start(self) -> None:
        """Begins to beat and to watch, until `stop`."""
        for thread in self._threads:
            thread.start()

    def say(self, state: State, cause: int | None = None) -> None:
        """Tells the others at once how this rank stands; when it no longer runs, the watch leaves the process alone."""
        self._cause = self.rank if cause is None else cause
        self._state = state
        self._nudged.set()
        self._until(lambda: self._written is state)

    def stop(self) -> None:
        """Ends the threads. Where all leave in peace, waits until the others have said so, too."""
        if self._state is State.LEFT:
            self._until(lambda: all(pulse.state is not State.RUNNING for pulse in self._others()))
        self._ended.set()
        self._nudged.set()
        for thread in self._threads:
            thread.join(self.pace.period)  # a store that hangs keeps the first; it is a daemon

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the main thread waits for other ranks, signals do not reach it; the watch acts for it."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Around a collective: raises RankLostError instead of the transport's error if another rank has stopped."""
        if self._state is not State.RUNNING:
            raise RankLostError("this one is leaving, too", self._cause)
        try:
            with self.waiting():
                yield
        except RuntimeError as error:
            lost = self.loss() or _lost_connection(error)
            if lost is None:
                raise
            self.say(State.FAILED, UNKNOWN if lost.rank is None else lost.rank)
            raise lost from error

    def loss(self) -> RankLostError | None:
        """Which rank has stopped, waited for until it would show; None if all live, or were interrupted like this."""
        last = self._rounds + _LOOKS
        suspected = partial(self._suspect, self.pace.suspicion)
        self._until(lambda: suspected() is not None or self._all_interrupted() or self._rounds >= last)
        return self._suspect(self.pace.suspicion)

    def _others(self) -> list[Pulse]:
        return [pulse for rank, pulse in enumerate(self._pulses) if rank != self.rank]

    def _interrupted(self) -> bool:
        return self._signal != 0 or self._state is State.INTERRUPTED

    def _told(self) -> State:
        """The state for the others: a signal in a collective has not reached the main thread yet, but will."""
        if self._state is State.RUNNING and self._signal and self._waiting:
            return State.INTERRUPTED
        return self._state

    def _all_interrupted(self) -> bool:
        return self._interrupted() and all(pulse.state in (State.INTERRUPTED, State.LEFT) for pulse in self._others())

    def _until(self, done: Callable[[], bool]) -> None:
        """Waits for what the threads bring about, at most as long as the grace, or as the store lives."""
        end = time.monotonic() + self.pace.grace
        while not done() and not self._broken and time.monotonic() < end:
            time.sleep(self.pace.period / 20)

    def _suspect(self, silence: float) -> RankLostError | None:
        """Who has stopped, as far as is known now: one that says so, one that was silent so long, or the store."""
        others = [rank for rank in range(len(self.hosts)) if rank != self.rank]
        failed = [rank for rank in others if self._pulses[rank].state is State.FAILED]
        for rank in failed:
            if self._pulses[rank].cause != UNKNOWN:
                return self._lost(self._pulses[rank].cause)
        for rank in others:
            # A signal that came to this process, too, is one for all, not the end of one.
            if self._pulses[rank].state is State.INTERRUPTED and not self._interrupted():
                return self._lost(rank)
        running = [rank for rank in others if self._pulses[rank].state is State.RUNNING]
        silent = max(running, key=self._silences.seconds.__getitem__, default=None)
        if silent is not None and self._silences.seconds[silent] >= silence:
            return self._lost(silent, f", silent for {self._silences.seconds[silent]:.0f} s")
        if failed:
            return self._lost(failed[0], ", which lost another one")
        if self._broken or self._store_silence.seconds[0] >= silence:
            return RankLostError(f"{self._keeper} does not answer")
        return None

    def _lost(self, rank: int, detail: str = "") -> RankLostError:
        if rank == self.rank:
            return RankLostError("the others, which heard nothing of this one", rank)
        interrupted = ", interrupted" if self._pulses[rank].state is State.INTERRUPTED else ""
        return RankLostError(f"rank {rank} on {self.hosts[rank]}{interrupted}{detail}", rank)

    def _beat(self) -> None:
        """The first thread: writes and reads once per period, often while leaving; ends with `stop` or the store."""
        beats = 0
        while True:
            beats, ended, state = beats + 1, self._ended.is_set(), self._told()
            try:
                self._store.set(self._keys[self.rank], Pulse(beats, state, self._cause).text())
                self._pulses = [Pulse.parsed(value.decode()) for value in self._store.multi_get(self._keys)]
            except Exception:  # whatever torch calls a lost connection
                self._broken = True
                return
            self._silences.look([pulse.beats for pulse in self._pulses], time.monotonic())
            self._written, self._rounds = state, self._rounds + 1
            if ended:
                return
            self._nudged.wait(self.pace.period / 20 if state is State.LEFT else self.pace.period)
            self._nudged.clear()

    def _watch(self) -> None:
        """The second thread: ends the process if it has reason to for as long as the grace."""
        since: float | None = None
        while not self._ended.is_set():
            self._listen(self.pace.period / 4)
            now = time.monotonic()
            self._store_silence.look([self._rounds], now)
            reason = self._reason_to_end()
            if reason is None:
                since = None
            elif since is None:
                since = now
            elif now - since >= self.pace.grace:
                _end(*reason)

    def _listen(self, seconds: float) -> None:
        """Waits so long, or until a signal arrives."""
        if self._signals is None:
            self._ended.wait(seconds)
            return
        self._signals.settimeout(seconds)
        with contextlib.suppress(OSError):  # nothing in time, or closed
            for number in self._signals.recv(64):
                if number in (signal.SIGINT, signal.SIGTERM):
                    self._signal = number
                    self._nudged.set()

    def _reason_to_end(self) -> tuple[str, int] | None:
        """The line and the exit status with which this process should end; None while all is well."""
        if self._state is not State.RUNNING:
            return None
        lost = self._suspect(self.pace.limit)
        if lost is not None:
            return f"error: {lost}", _LOST
        if self._signal and self._waiting:
            lost = self._suspect(self.pace.suspicion)
            if lost is not None:
                return f"error: {lost}", _LOST
            return "interrupted while waiting for the other processes of this run", 128 + self._signal
        return None


def _lost_connection(error: RuntimeError) -> RankLostError | None:
    """For an error of the transport that no pulse explains: the network between two machines."""
    text = " ".join(str(error).split())
    if "onnection" not in text and "imed out" not in text:
        return None
    return RankLostError(f"or cannot be reached: {text[:160]}")


def _end(line: str, status: int) -> None:
    """Says one line and ends the process at once, whatever the main thread does."""
    start = "\n" if sys.stderr.isatty() else ""  # a line of progress may stand there
    os.write(2, f"{start}{line}\n".encode())
    os._exit(status)


@contextlib.contextmanager
def arriving_signals() -> Iterator[socket.socket | None]:
    """A socket that gives the numbers of signals as they arrive, also while the main thread is not in Python.

    Only signals that Python handles; the handlers run as ever. None outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(before)
