"""ONNX Runtime's side of `peers.py`.

    PEER/bin/python benchmarks/cpu/run_onnxruntime.py < JOB.json      (see `runner.py`)

One session holds a product per weight, each with a float32 input of its own that is bound beforehand; the nodes run one
after another, and the call of the session counts once for all of them. Static W8A8 quantizes with QuantizeLinear before
MatMulIntegerToFloat; dynamic W8A8 is DynamicQuantizeMatMul, as onnxruntime's tools make it.
"""

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from runner import Case, Product, Ready, read_job, serve

GROUP = 128
MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 21, 10

Parts = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]
"""Nodes from x{number} to y{number}, and their constants."""

RANDOM = np.random.default_rng(0)


def _bytes(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def _scales(count: int) -> np.ndarray:
    return RANDOM.random(count, dtype=np.float32) / 1000


def _float(case: Case, n: int) -> Parts:
    weight = RANDOM.standard_normal((case.inputs, case.outputs), dtype=np.float32)
    return [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"y{n}"])], {f"w{n}": weight}


def _nbits(bits: int, level: int) -> Callable[[Case, int], Parts]:
    def parts(case: Case, n: int) -> Parts:
        groups = -(-case.inputs // GROUP)
        names = [f"x{n}", f"w{n}", f"s{n}", f"z{n}"]
        node = helper.make_node(
            "MatMulNBits", names, [f"y{n}"], domain=MICROSOFT, K=case.inputs, N=case.outputs, bits=bits,
            block_size=GROUP, accuracy_level=level,
        )  # fmt: skip
        weight = _bytes(case.outputs, groups, GROUP * bits // 8)
        zero_points = _bytes(case.outputs * (-(-groups * bits // 8)))
        return [node], {f"w{n}": weight, f"s{n}": _scales(case.outputs * groups), f"z{n}": zero_points}

    return parts


def _dynamic(case: Case, n: int) -> Parts:
    node = helper.make_node("DynamicQuantizeMatMul", [f"x{n}", f"w{n}", f"s{n}"], [f"y{n}"], domain=MICROSOFT)
    return [node], {f"w{n}": _bytes(case.inputs, case.outputs).view(np.int8), f"s{n}": _scales(case.outputs)}


def _static(case: Case, n: int) -> Parts:
    nodes = [
        helper.make_node("QuantizeLinear", [f"x{n}", f"step{n}", f"zero{n}"], [f"codes{n}"]),
        helper.make_node(
            "MatMulIntegerToFloat", [f"codes{n}", f"w{n}", f"step{n}", f"s{n}", f"zero{n}"], [f"y{n}"], domain=MICROSOFT
        ),
    ]
    constants = {f"step{n}": np.array(4 / 127, np.float32), f"zero{n}": np.array(128, np.uint8)}
    weight = _bytes(case.inputs, case.outputs).view(np.int8)
    return nodes, {**constants, f"w{n}": weight, f"s{n}": _scales(case.outputs)}


def _session(case: Case, parts: Callable[[Case, int], Parts]) -> tuple[onnxruntime.InferenceSession, int]:
    """The session, and the bytes of one product's constants."""
    nodes, constants, size = [], [], 0
    for number in range(case.copies):
        made, arrays = parts(case, number)
        nodes += made
        constants += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        size = sum(array.nbytes for array in arrays.values())

    def values(letter: str, columns: int) -> list[onnx.ValueInfoProto]:
        shape = [case.rows, columns]
        return [helper.make_tensor_value_info(f"{letter}{n}", TensorProto.FLOAT, shape) for n in range(case.copies)]

    graph = helper.make_graph(nodes, "products", values("x", case.inputs), values("y", case.outputs), constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]), size


def _make(parts: Callable[[Case, int], Parts]) -> Callable[[Case], Ready]:
    def make(case: Case) -> Ready:
        session, size = _session(case, parts)
        binding = session.io_binding()
        x = RANDOM.standard_normal((case.rows, case.inputs), dtype=np.float32)
        kept = []
        for number in range(case.copies):
            given = onnxruntime.OrtValue.ortvalue_from_numpy(x)
            result = onnxruntime.OrtValue.ortvalue_from_shape_and_type([case.rows, case.outputs], np.float32)
            binding.bind_ortvalue_input(f"x{number}", given)
            binding.bind_ortvalue_output(f"y{number}", result)
            kept += [given, result]
        return Ready(lambda: (session.run_with_iobinding(binding), kept), size)

    return make


PRODUCTS = {
    "fp32": Product(32, _make(_float)),
    "W8A8 static": Product(8, _make(_static)),
    "W8A8 dynamic": Product(8, _make(_dynamic)),
    "W8 g128, level 4": Product(8, _make(_nbits(8, 4))),
    "W8 g128, level 0": Product(8, _make(_nbits(8, 0))),
    "W4 g128, level 4": Product(4, _make(_nbits(4, 4))),
    "W4 g128, level 0": Product(4, _make(_nbits(4, 0))),
    "W2 g128, level 4": Product(2, _make(_nbits(2, 4))),
}
"""Weight-only ones are MatMulNBits with zero points; its accuracy level 4 multiplies with inputs in int8."""


if __name__ == "__main__":
    serve(read_job(), PRODUCTS, {"onnxruntime": version("onnxruntime")})
