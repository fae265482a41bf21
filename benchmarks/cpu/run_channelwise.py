"""Our side of `peers.py`, and torch's own layers, measured as peers are (`runner.py`), in this environment.

    python benchmarks/cpu/run_channelwise.py < JOB.json

Unlike a peer's, every product is a call from Python, and its result is new memory, as in a model.
"""

import torch
from layers import SCHEMES, held_bytes, random_layer, twin
from operators import MAKERS, Inputs, Layer
from runner import Case, Product, Ready, read_job, serve

BITS = {"fp32": 32.0, "bf16": 16.0, "bf16-prepacked": 16.0}
"""Of torch's layers; others have 8 at most."""


def _made(name: str, case: Case) -> list[Layer]:
    if name in MAKERS:
        return [MAKERS[name](case.outputs, case.inputs, case.rows) for _ in range(case.copies)]
    first = random_layer(SCHEMES[name], case.outputs, case.inputs)
    layers = [first, *(twin(first) for _ in range(case.copies - 1))]
    return [Layer(lambda x, layer=layer: layer(x.bf16), held_bytes(layer)) for layer in layers]


def _product(name: str) -> Product:
    @torch.no_grad()
    def make(case: Case) -> Ready:
        torch.set_num_threads(case.threads)
        layers, x = _made(name, case), Inputs.random(case.rows, case.inputs)

        @torch.no_grad()
        def call() -> None:
            for layer in layers:
                layer.call(x)

        return Ready(call, layers[0].bytes)

    return Product(SCHEMES[name].weights.grid.bits if name in SCHEMES else BITS.get(name, 8.0), make)


if __name__ == "__main__":
    serve(read_job(), {name: _product(name) for name in [*MAKERS, *SCHEMES]}, {"torch": torch.__version__})
