#!/usr/bin/env python3
"""Asks XLA itself about the graphs that the Neuron back end emits: its verifier must accept each, and on the CPU it must
compute what the simulated device computed from the same inputs.

    DUALGAUGE_TEST_RECORD=FOLDER DUALGAUGE_TEST_DEVICES=neuron cargo test --release --workspace --test ops
    python3 -m venv v && v/bin/pip install jax jaxlib numpy && v/bin/python tests/xla/check.py FOLDER [MOST]"""

import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib import xla_client
from jaxlib.mlir import ir

TYPES = {"pred": np.bool_, "s8": np.int8, "u8": np.uint8, "s32": np.int32, "f16": np.float16, "f32": np.float32}
TYPES["bf16"] = ml_dtypes.bfloat16
# Sums in another order and other polynomials; 16-bit results may round to the neighbour.
ALLOWED = {"f32": 2e-5, "f16": 2e-3, "bf16": 2e-2}
DEVICE = jax.devices("cpu")[:1]


def shapes(computation):
    """(type, dimensions) of every parameter and result, as XLA reads the module's signature."""
    program = computation.program_shape()
    one = lambda shape: (shape.numpy_dtype(), shape.dimensions())
    return [one(s) for s in program.parameter_shapes()], [one(s) for s in program.result_shape().tuple_shapes()]


def run(computation, arguments):
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
    with jax_mlir.make_ir_context():
        module = ir.Module.parse(text)
        options, devices = xla_client.CompileOptions(), xla_client.DeviceList(tuple(DEVICE))
        executable = DEVICE[0].client.compile_and_load(module, devices, options)
    results = executable.execute_sharded([jax.device_put(x, DEVICE[0]) for x in arguments])
    return [np.asarray(parts[0]) for parts in results.disassemble_into_single_device_arrays()]


def off(held, wanted):
    """The largest difference as a part of the largest value; whole numbers must be equal."""
    if wanted.dtype.kind in "biu":
        return 0.0 if np.array_equal(held, wanted) else np.inf
    held, wanted = held.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(held[~finite], wanted[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    return float(np.abs(held - wanted)[finite].max() / max(np.abs(wanted[finite]).max(), 1e-30))


def check(folder):
    computation = xla_client.XlaComputation((folder / "graph.hlo.pb").read_bytes())
    inputs, outputs = shapes(computation)
    load = lambda name, kind, dims: np.frombuffer((folder / name).read_bytes(), kind).reshape(dims)
    arguments = [load(f"in-{i}", kind, dims) for i, (kind, dims) in enumerate(inputs)]
    held = run(computation, arguments)
    worst = 0.0
    for i, ((kind, dims), value) in enumerate(zip(outputs, held, strict=True)):
        name = {np.dtype(t): n for n, t in TYPES.items()}[np.dtype(kind)]
        difference = off(np.asarray(value), load(f"out-{i}", kind, dims))
        if difference > ALLOWED.get(name, 0.0):
            raise ValueError(f"output {i} ({name} {list(dims)}) is off by {difference:.1e} of its largest value")
        worst = max(worst, difference)
    return worst


def main():
    most = int(sys.argv[2]) if len(sys.argv) > 2 else 1 << 30
    folders = sorted(p.parent for p in Path(sys.argv[1]).glob("*/graph.hlo.pb"))[:most]
    worst, failed = 0.0, 0
    for folder in folders:
        try:
            worst = max(worst, check(folder))
        except Exception as error:  # One graph's failure does not hide the others.
            failed += 1
            print(f"{folder.name}: {str(error).splitlines()[0]}")
    print(f"{len(folders)} graphs through XLA {jax.__version__}: {failed} failed, the others off by at most {worst:.1e}")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
