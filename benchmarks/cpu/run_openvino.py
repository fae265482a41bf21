"""OpenVINO's side of `peers.py`.

    PEER/bin/python benchmarks/cpu/run_openvino.py < JOB.json      (see `runner.py`)

One compiled model holds a product per weight, each with a float32 input of its own; the call counts once for all.
W8A8 is a FakeQuantize before a product with int8 weights, which the plugin turns into an integer product; W8 and W4 are
compressed weights with zero points. The plugin quantizes inputs of compressed products by itself unless the dynamic
quantization group is 0; both are measured. The note tells what the plugin ran.
"""

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from runner import Case, Product, Ready, read_job, serve

GROUP = 128
RANGE = 4.0
RANDOM = np.random.default_rng(0)
CORE = ov.Core()

Weight = Callable[[Case, ov.Output], tuple[ov.Output, int]]
"""The product with a new weight, and the bytes of that."""


def _float(case: Case, x: ov.Output) -> tuple[ov.Output, int]:
    weight = RANDOM.standard_normal((case.outputs, case.inputs), dtype=np.float32) / case.inputs**0.5
    return ops.matmul(x, ops.constant(weight), False, True), weight.nbytes


def _bf16(case: Case, x: ov.Output) -> tuple[ov.Output, int]:
    product, size = _float(case, x)
    return product, size // 2


def _integers(case: Case, x: ov.Output) -> tuple[ov.Output, int]:
    weight = RANDOM.integers(-127, 128, (case.outputs, case.inputs), dtype=np.int8)
    scale = RANDOM.random((case.outputs, 1), dtype=np.float32) / 1000
    low, high = (np.array(value, np.float32) for value in (-RANGE, RANGE * 127 / 128))
    codes = ops.fake_quantize(x, low, high, low, high, 256)
    values = ops.multiply(ops.convert(ops.constant(weight), "f32"), ops.constant(scale))
    return ops.matmul(codes, values, False, True), weight.nbytes + scale.nbytes


def _compressed(kind: ov.Type, bits: int) -> Weight:
    def weight(case: Case, x: ov.Output) -> tuple[ov.Output, int]:
        groups = case.inputs // GROUP

        def codes(*shape: int) -> ov.Output:
            count = int(np.prod(shape)) * bits // 8
            data = RANDOM.integers(0, 256, count, dtype=np.uint8)
            return ops.convert(ov.op.Constant(ov.Tensor(data, ov.Shape(list(shape)), kind)), "f16")

        scale = (RANDOM.random((case.outputs, groups, 1)) / 1000).astype(np.float16)
        centred = ops.subtract(codes(case.outputs, groups, GROUP), codes(case.outputs, groups, 1))
        values = ops.multiply(centred, ops.constant(scale))
        flat = ops.reshape(values, np.array([case.outputs, case.inputs]), False)
        size = case.outputs * groups * (GROUP + 1) * bits // 8 + scale.nbytes
        return ops.matmul(x, ops.convert(flat, "f32"), False, True), size

    return weight


def _make(weight: Weight, precision: str = "f32", group: int | None = None) -> Callable[[Case], Ready]:
    def make(case: Case) -> Ready:
        inputs = [ops.parameter([case.rows, case.inputs], np.float32) for _ in range(case.copies)]
        products = [weight(case, each.output(0)) for each in inputs]
        model = ov.Model([product for product, _ in products], inputs, "products")
        settings = {
            "INFERENCE_NUM_THREADS": case.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        if group is not None:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
        compiled = CORE.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        x = RANDOM.standard_normal((case.rows, case.inputs), dtype=np.float32)
        for number in range(case.copies):
            request.set_input_tensor(number, ov.Tensor(x.copy()))
        return Ready(lambda: request.infer(), products[0][1], _ran(compiled))

    return make


def _ran(compiled: ov.CompiledModel) -> str:
    """The kernel and the weight's precision of a fully connected node."""
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        if "layerType" in about and str(about["layerType"].astype(str)) in ("FullyConnected", "MatMul"):
            return str(about["primitiveType"].astype(str))
    return "no fully connected node"


PRODUCTS = {
    "fp32": Product(32, _make(_float)),
    "bf16": Product(16, _make(_bf16, "bf16")),
    "W8A8 static": Product(8, _make(_integers)),
    "W8 g128": Product(8, _make(_compressed(ov.Type.u8, 8))),
    "W4 g128": Product(4, _make(_compressed(ov.Type.u4, 4))),
    "W8 g128, no dynamic": Product(8, _make(_compressed(ov.Type.u8, 8), group=0)),
    "W4 g128, no dynamic": Product(4, _make(_compressed(ov.Type.u4, 4), group=0)),
    "W4 g128, bf16": Product(4, _make(_compressed(ov.Type.u4, 4), "bf16")),
}


if __name__ == "__main__":
    serve(read_job(), PRODUCTS, {"openvino": version("openvino")})
