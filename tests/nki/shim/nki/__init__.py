"""A stand-in for the part of the `nki` package that our kernels use: NumPy arithmetic with the rules that a kernel can
break. Memory that was never written is not a number; on-chip tiles have at most 128 partitions; engines read on-chip memory
only; matrix products go from SBUF to PSUM. It cannot tell whether the NKI compiler takes a kernel's text."""

import numpy as np


class Tensor:
    """A tile or a tensor: values, where they lie, and the allocation they are a view of."""

    def __init__(self, values, buffer, root=None):
        self.values, self.buffer, self.root = values, buffer, self if root is None else root

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def __getitem__(self, key):
        view = self.values[key]
        assert view.base is not None, "a tile is sliced, not copied"
        return Tensor(view, self.buffer, self.root)

    def ap(self, pattern, offset=0, vector_offset=None, indirect_dim=0):
        """Rows by index: element (i, j) is at `index[i] * stride + offset + j`. The device faults beyond the tensor."""
        (stride, count), (step, width) = pattern
        assert self.buffer == "hbm" and indirect_dim == 0 and step == 1 and vector_offset.shape == (count, 1)
        index = vector_offset.values[:, 0].astype(np.int64)
        assert index.min() >= 0 and index.max() < self.shape[0], f"a gather out of range: {index.min()} .. {index.max()}"
        flat = self.values.reshape(-1)
        return Tensor(flat[index[:, None] * stride + offset + np.arange(width)], "hbm")

    def put(self, values):
        assert np.asarray(values).size == self.values.size, f"{np.shape(values)} into {self.shape}"
        self.values[...] = np.asarray(values).astype(self.dtype).reshape(self.shape)


def jit(kernel):
    return kernel


def simulate(kernel):
    """Runs a kernel on NumPy arrays."""

    def run(*arguments):
        tensors = [Tensor(a, "hbm") if isinstance(a, np.ndarray) else a for a in arguments]
        return kernel(*tensors).values

    return run
