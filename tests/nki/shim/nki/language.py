"""`nki.language`: allocation, ranges, types and operators."""

import ml_dtypes
import numpy as np

from . import Tensor

shared_hbm, sbuf, psum = "hbm", "sbuf", "psum"
float32, int32, bfloat16 = np.dtype("f4"), np.dtype("i4"), np.dtype(ml_dtypes.bfloat16)
SBUF_PARTITION_BYTES, PSUM_PARTITION_BYTES = 192 * 1024, 16 * 1024


class tile_size:
    pmax = 128


def ds(start, size):
    return slice(start, start + size)


affine_range = sequential_range = range


def ndarray(shape, dtype, buffer=sbuf):
    if buffer != shared_hbm:
        assert shape[0] <= 128, f"{shape[0]} partitions"
        limit = PSUM_PARTITION_BYTES if buffer == psum else SBUF_PARTITION_BYTES
        assert int(np.prod(shape[1:])) * np.dtype(dtype).itemsize <= limit, f"{shape} does not fit {buffer}"
    values = np.empty(shape, dtype)
    values[...] = np.iinfo(dtype).max if np.dtype(dtype).kind == "i" else np.nan
    return Tensor(values, buffer)


def full(shape, value, dtype, buffer=sbuf):
    tile = ndarray(shape, dtype, buffer)
    tile.values[...] = value
    return tile


def zeros(shape, dtype, buffer=sbuf):
    return full(shape, 0, dtype, buffer)


def broadcast_to(tile, shape):
    return Tensor(np.broadcast_to(tile.values, shape), tile.buffer)


def less_equal(a, b):
    return Tensor(a.values <= b.values, sbuf)


def where(which, yes, no, dtype):
    return Tensor(np.where(which.values, yes.values, no.values).astype(dtype), sbuf)


class Operator:
    """What an engine applies to elements; `fold` is its reduction."""

    def __init__(self, apply, fold=None):
        self.apply, self.fold = apply, fold


add, multiply, maximum = Operator(np.add, np.sum), Operator(np.multiply), Operator(np.maximum, np.max)
exp, copy = Operator(np.exp), Operator(lambda x: x)
