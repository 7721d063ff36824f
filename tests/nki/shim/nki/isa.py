"""`nki.isa`: instructions, with the argument names of the package."""

from enum import Enum

import numpy as np

from . import Tensor


class reduce_cmd(Enum):
    reset_reduce = 3


def _f32(x):
    return np.asarray(x.values if isinstance(x, Tensor) else x).astype(np.float32)


def _on_chip(*tiles):
    for tile in tiles:
        assert tile.buffer in ("sbuf", "psum") and tile.shape[0] <= 128, f"an engine reads {tile.buffer} {tile.shape}"


def dma_copy(dst, src):
    assert "psum" not in (dst.buffer, src.buffer), "DMA does not reach PSUM"
    assert dst.shape == src.shape and dst.dtype == src.dtype, f"{src.shape} to {dst.shape}"
    dst.put(src.values)


def dma_transpose(dst, src):
    assert "psum" not in (dst.buffer, src.buffer) and dst.shape == src.shape[::-1]
    dst.put(src.values.T)


def iota(dst, pattern, offset=0, channel_multiplier=0):
    ((step, count),) = pattern
    dst.put(offset + np.arange(dst.shape[0])[:, None] * channel_multiplier + np.arange(count) * step)


def nc_matmul(dst, stationary, moving):
    assert dst.buffer == "psum" and stationary.buffer == moving.buffer == "sbuf", "products go from SBUF to PSUM"
    assert stationary.shape[0] == moving.shape[0] <= 128 and stationary.shape[1] <= 128 and moving.shape[1] <= 512
    assert dst.dtype == np.float32 and stationary.dtype == moving.dtype, "products of one type, sums of f32"
    dst.put(_f32(stationary).T @ _f32(moving))


def nc_transpose(dst, data):
    _on_chip(dst, data)
    assert data.shape[0] <= 128 and data.shape[1] <= 128 and dst.shape == data.shape[::-1]
    assert dst.buffer != "psum" or dst.dtype == data.dtype, "a transposition keeps its type"
    dst.put(data.values.T)


def tensor_copy(dst, src):
    _on_chip(dst, src)
    dst.put(src.values)


def activation(dst, op, data, bias=None, scale=1.0, reduce_op=None, reduce_res=None, reduce_cmd=None):
    _on_chip(dst, data)
    result = op.apply(_f32(data) * np.float32(scale) + (0 if bias is None else _f32(bias)))
    dst.put(result)
    if reduce_res is not None:
        reduce_res.put(reduce_op.fold(result, axis=1, keepdims=True))


def tensor_reduce(dst, op, data, axis):
    _on_chip(dst, data)
    dst.put(op.fold(_f32(data), axis=axis))


def tensor_tensor(dst, data1, data2, op):
    _on_chip(dst, data1, data2)
    assert not data1.buffer == data2.buffer == "psum", "one operand in PSUM at most"
    dst.put(op.apply(_f32(data1), _f32(data2)))


def tensor_scalar(dst, data, op0, operand0, op1=None, operand1=None):
    _on_chip(dst, data)
    result = op0.apply(_f32(data), _f32(operand0))
    dst.put(result if op1 is None else op1.apply(result, _f32(operand1)))


def reciprocal(dst, data):
    _on_chip(dst, data)
    dst.put(1 / _f32(data))
