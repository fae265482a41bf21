"""Many small operations, recorded once and launched at once.

A GPU takes longer to be told of a small operation than to do it. GPTQ has some dozens for each column, each waiting for
the one before; as a CUDA graph the host tells of a whole block of columns at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Operations = Callable[..., tuple[torch.Tensor, ...]]
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""From a function that computes on certain memory to one that does the same on the same memory again."""


@dataclass
class Repeated:
    """A function of tensors that is called again and again with the same shapes.

    function: changes its first input in place, leaves the others alone, gives new tensors, and reads no value of any.
    record: None calls it as it is. Otherwise it is recorded at the second call; the first computes as usual, so that
    libraries do then what they do only once. Inputs of other shapes than the first call's are computed as usual, too.
    """

    function: Operations
    record: Recorder | None = None
    _first: tuple[torch.Size, ...] | None = None
    _recording: "_Recording | None" = None

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the function gives; the same numbers either way."""
        if self.record is None:
            return self.function(*inputs)
        shapes = tuple(given.shape for given in inputs)
        if shapes != self._first:
            self._first = self._first or shapes
            return self.function(*inputs)
        if self._recording is None:
            self._recording = _Recording.of(self.function, inputs, self.record)
        return self._recording(*inputs)


@dataclass(frozen=True)
class _Recording:
    """inputs, outputs: the memory that `replay` reads and writes."""

    inputs: tuple[torch.Tensor, ...]
    outputs: list[torch.Tensor]
    replay: Callable[[], None]

    @classmethod
    def of(cls, function: Operations, like: tuple[torch.Tensor, ...], record: Recorder) -> "_Recording":
        inputs = tuple(given.clone(memory_format=torch.contiguous_format) for given in like)
        outputs: list[torch.Tensor] = []

        def run() -> None:
            outputs[:] = function(*inputs)

        return cls(inputs, outputs, record(run))

    def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for own, new in zip(self.inputs, given, strict=True):
            own.copy_(new)
        self.replay()
        given[0].copy_(self.inputs[0])
        return tuple(output.clone() for output in self.outputs)


def recorder_for(device: torch.device) -> Recorder | None:
    """How operations on this device are recorded; None where calling them costs little."""
    return partial(_graph, device) if device.type == "cuda" else None


def _graph(device: torch.device, run: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of what `run` launches; it is not computed yet.

    torch.cuda.graph would collect garbage and give up all cached memory, which takes longer than the recording. Other
    threads (those of collectives) may use the device meanwhile.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            run()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
