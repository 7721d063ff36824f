#!/usr/bin/env python3
"""Runs the NKI kernels of kernels/nki on a NumPy stand-in and compares them with attention written out in f64.

Needs numpy and ml_dtypes: python3 -m venv v && v/bin/pip install numpy ml_dtypes && v/bin/python tests/nki/check.py"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "shim"), str(HERE.parents[1] / "kernels/nki")]

import attention  # noqa: E402
import ml_dtypes  # noqa: E402
import nki  # noqa: E402
import numpy as np  # noqa: E402

BLOCK_TOKENS = 16


def oracle(q, k, v, position, scale):
    """One query [heads, dim] over its first keys [S, kv_heads, dim], in f64."""
    heads, kv_heads = q.shape[0], k.shape[1]
    q, k, v = (x.astype(np.float64) for x in (q, k[: position + 1], v[: position + 1]))
    k, v = (np.repeat(x, heads // kv_heads, axis=1) for x in (k, v))
    scores = np.einsum("hd,shd->hs", q, k) * scale
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hs,shd->hd", shares / shares.sum(axis=1, keepdims=True), v)


def paged(random, sequences, keys, kv_heads, dim, dtype):
    """Caches of random values with block 0 set to what nothing may see, and the rows of each sequence's keys."""
    blocks = sequences * keys // BLOCK_TOKENS + 1
    caches = [random.standard_normal((blocks * BLOCK_TOKENS, kv_heads * dim)).astype(dtype) for _ in range(2)]
    for cache in caches:
        cache[:BLOCK_TOKENS] = 1e4
    table = random.permutation(np.arange(1, blocks)).reshape(sequences, -1)
    rows = (table[:, :, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)).reshape(sequences, keys).astype(np.int32)
    return caches, rows


def padded(rows, positions):
    """Blocks beyond the context point to block 0, as the engine's tables do."""
    rows = rows.copy()
    for row, position in zip(rows, positions):
        used = (position // BLOCK_TOKENS + 1) * BLOCK_TOKENS
        row[used:] = np.arange(len(row) - used) % BLOCK_TOKENS
    return rows


def worst(kernel, name, dtype, heads, kv_heads, dim, keys, positions, chunk):
    """The largest difference from the oracle, as a part of the largest value."""
    random = np.random.default_rng([heads, dim, keys, len(positions)])
    sequences = 1 if chunk else len(positions)
    (k_cache, v_cache), rows = paged(random, sequences, keys, kv_heads, dim, dtype)
    q = random.standard_normal((len(positions), heads, dim)).astype(dtype)
    scale = dim**-0.5
    last = [max(positions)] if chunk else positions
    held = nki.simulate(kernel)(q, k_cache, v_cache, padded(rows, last), np.array(positions, np.int32)[:, None], scale)
    off = 0.0
    for i, position in enumerate(positions):
        row = rows[0 if chunk else i]
        k, v = (cache[row].reshape(keys, kv_heads, dim) for cache in (k_cache, v_cache))
        wanted = oracle(q[i], k, v, position, scale)
        off = max(off, np.abs(held[i].astype(np.float64) - wanted).max() / np.abs(wanted).max())
    return off


def main():
    failed = 0
    # f32: another order of sums and two exponentials. bf16: shares and the result are rounded to 8 bits.
    for dtype, allowed in ((np.float32, 1e-5), (ml_dtypes.bfloat16, 2e-2)):
        for heads, kv_heads, dim in ((4, 2, 16), (8, 1, 64), (6, 6, 128)):
            for keys in (128, 384):
                decode = [0, 15, 16, keys // 2, keys - 1]
                start = keys - 140 if keys > 140 else 3
                chunk = list(range(start, min(start + 137, keys)))
                cases = (
                    ("paged_decode", attention.paged_decode, decode, False),
                    ("flash_prefill", attention.flash_prefill, chunk, True),
                )
                for name, kernel, positions, is_chunk in cases:
                    off = worst(kernel, name, dtype, heads, kv_heads, dim, keys, positions, is_chunk)
                    good = off <= allowed
                    failed += not good
                    shape = f"{heads} heads on {kv_heads} of {dim}, {keys} keys, {len(positions)} tokens"
                    print(f"{'ok' if good else 'OFF':<4}{name:<14}{np.dtype(dtype).name:<9} {shape:<46} {off:.1e} <= {allowed:.0e}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
