"""llama.cpp's side of `peers.py`: ggml's mul_mat through ctypes on the libraries that llama-cpp-python built.

    PEER/bin/python benchmarks/cpu/run_llama_cpp.py < JOB.json      (see `runner.py`)

Weights lie where llama.cpp's loader puts them: in the first of the CPU's extra buffer types (AMX, repacked) that says
it multiplies with the type, else in plain memory; the note says which. One graph holds a product per weight, all with
the same float32 input, and is computed with one call: thread start and calls from Python count once for all of them.
"""

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from importlib.metadata import version
from pathlib import Path

import numpy as np
from runner import Case, NotMeasuredError, Product, Ready, read_job, serve

TYPES = {"F32": (0, 32.0), "F16": (1, 16.0), "BF16": (30, 16.0)}
TYPES |= {"Q8_0": (8, 8.5), "Q6_K": (14, 6.5625), "Q4_0": (2, 4.5), "Q4_K": (12, 4.5)}
TYPES |= {"Q3_K": (11, 3.4375), "Q2_K": (10, 2.625)}
"""GGML_TYPE_* of ggml.h, and bits per weight."""

FLOAT32 = 0
TILE_ROWS = 64
TENSOR_OVERHEAD, GRAPH_OVERHEAD = 1024, 1 << 20


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    from importlib.util import find_spec

    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise NotMeasuredError("llama_cpp is not installed")
    folder = Path(spec.origin).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
    pointers = "init mul_mat new_tensor_2d new_graph_custom backend_alloc_ctx_tensors_from_buft"
    pointers += " backend_get_device backend_dev_backend_reg backend_reg_get_proc_address"
    for name in pointers.split():
        getattr(base, f"ggml_{name}").restype = c_void_p
    base.ggml_init.argtypes = [InitParams]
    base.ggml_free.argtypes = [c_void_p]
    base.ggml_new_tensor_2d.argtypes = [c_void_p, c_int, c_int64, c_int64]
    base.ggml_mul_mat.argtypes = [c_void_p, c_void_p, c_void_p]
    base.ggml_new_graph_custom.argtypes = [c_void_p, c_size_t, c_bool]
    base.ggml_build_forward_expand.argtypes = [c_void_p, c_void_p]
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [c_void_p], c_size_t
    base.ggml_quantize_chunk.argtypes = [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]
    base.ggml_quantize_chunk.restype = c_size_t
    base.ggml_backend_alloc_ctx_tensors_from_buft.argtypes = [c_void_p, c_void_p]
    base.ggml_backend_buffer_free.argtypes = [c_void_p]
    base.ggml_backend_tensor_set.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t]
    base.ggml_backend_tensor_get.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t]
    base.ggml_backend_graph_compute.argtypes = [c_void_p, c_void_p]
    base.ggml_backend_get_device.argtypes = [c_void_p]
    base.ggml_backend_dev_backend_reg.argtypes = [c_void_p]
    base.ggml_backend_dev_supports_op.argtypes, base.ggml_backend_dev_supports_op.restype = [c_void_p] * 2, c_bool
    base.ggml_backend_reg_get_proc_address.argtypes = [c_void_p, c_char_p]
    base.ggml_backend_buft_name.argtypes, base.ggml_backend_buft_name.restype = [c_void_p], c_char_p
    base.ggml_version.restype = c_char_p
    cpu.ggml_backend_cpu_init.restype = c_void_p
    cpu.ggml_backend_cpu_set_n_threads.argtypes = [c_void_p, c_int]
    base.ggml_backend_cpu_buffer_type.restype = c_void_p
    return base, cpu


BASE, CPU = _libraries()
BACKEND = CPU.ggml_backend_cpu_init()
DEVICE = BASE.ggml_backend_get_device(BACKEND)


def _buffer_types() -> list[int]:
    """The CPU's extra buffer types in the loader's order, then plain memory."""
    registry = BASE.ggml_backend_dev_backend_reg(DEVICE)
    address = BASE.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    found: list[int] = []
    if address:
        types = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(DEVICE)
        while types and (each := types[len(found)]):
            found.append(each)
    return [*found, BASE.ggml_backend_cpu_buffer_type()]


class Graph:
    """A product per weight; its memory is freed with it."""

    def __init__(self, kind: int, case: Case, buffer_type: int) -> None:
        size = TENSOR_OVERHEAD * (case.copies + 8)
        self._contexts = [BASE.ggml_init(InitParams(size, None, True)) for _ in range(2)]
        self._contexts.append(BASE.ggml_init(InitParams(size + GRAPH_OVERHEAD, None, True)))
        weights, inputs, results = self._contexts
        self.weights = [BASE.ggml_new_tensor_2d(weights, kind, case.inputs, case.outputs) for _ in range(case.copies)]
        self.input = BASE.ggml_new_tensor_2d(inputs, FLOAT32, case.inputs, case.rows)
        self.graph = BASE.ggml_new_graph_custom(results, max(2048, 2 * case.copies), False)
        self.products = [BASE.ggml_mul_mat(results, weight, self.input) for weight in self.weights]
        for product in self.products:
            BASE.ggml_build_forward_expand(self.graph, product)
        plain = BASE.ggml_backend_cpu_buffer_type()
        kinds = (buffer_type, plain, plain)
        self._buffers = [
            BASE.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
            for context, kind in zip(self._contexts, kinds, strict=True)
        ]

    def supported(self) -> bool:
        """Whether the CPU multiplies with weights in this buffer type."""
        return bool(self._buffers[0]) and BASE.ggml_backend_dev_supports_op(DEVICE, self.products[0])

    def __call__(self) -> None:
        """All products."""
        if BASE.ggml_backend_graph_compute(BACKEND, self.graph):
            raise NotMeasuredError("ggml_backend_graph_compute failed")

    def __del__(self) -> None:
        for buffer in filter(None, self._buffers):
            BASE.ggml_backend_buffer_free(buffer)
        for context in self._contexts:
            BASE.ggml_free(context)


def _quantized(kind: int, values: np.ndarray, size: int) -> np.ndarray:
    """The values' bytes in a type."""
    data = np.empty(size, dtype=np.uint8)
    BASE.ggml_quantize_chunk(kind, values.ctypes.data, data.ctypes.data, 0, *values.shape, None)
    return data


def _make(kind: int, case: Case) -> Ready:
    CPU.ggml_backend_cpu_set_n_threads(BACKEND, case.threads)
    one = Case(case.outputs, case.inputs, case.rows, 1, case.threads)
    buffer_type = next(each for each in _buffer_types() if Graph(kind, one, each).supported())
    graph = Graph(kind, case, buffer_type)
    size = BASE.ggml_nbytes(graph.weights[0])
    random = np.random.default_rng(0)
    tile = random.standard_normal((TILE_ROWS, case.inputs), dtype=np.float32) / case.inputs**0.5
    rows = _quantized(kind, tile, size * TILE_ROWS // case.outputs)
    data = np.tile(rows, case.outputs // TILE_ROWS)
    for weight in graph.weights:
        BASE.ggml_backend_tensor_set(weight, data.ctypes.data, 0, size)
    x = random.standard_normal((case.rows, case.inputs), dtype=np.float32)
    BASE.ggml_backend_tensor_set(graph.input, x.ctypes.data, 0, x.nbytes)
    graph()
    result = np.empty((case.rows, case.outputs), dtype=np.float32)
    BASE.ggml_backend_tensor_get(graph.products[-1], result.ctypes.data, 0, result.nbytes)
    expected = x @ tile.T
    error = np.linalg.norm(result[:, :TILE_ROWS] - expected) / np.linalg.norm(expected)
    return Ready(graph, size, f"{BASE.ggml_backend_buft_name(buffer_type).decode()}, relative error {error:.3f}")


def main() -> None:
    """One job."""
    job = read_job()
    products = {name: Product(bits, lambda case, kind=kind: _make(kind, case)) for name, (kind, bits) in TYPES.items()}
    versions = {"llama-cpp-python": version("llama-cpp-python"), "ggml": BASE.ggml_version().decode()}
    serve(job, products, versions)


if __name__ == "__main__":
    main()
