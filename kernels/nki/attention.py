"""Owns attention over the paged K/V cache as NKI kernels: a decode step of many sequences, and a chunk of one prompt.

Opt-in: the plain-HLO rule of `kernels/src/neuron/lower/attention.rs` is what runs unless asked otherwise, and both must give
the same numbers. Not yet compiled by the NKI compiler or run on a device; `tests/nki/check.py` runs them on NumPy.

Shapes, for S keys of context (a multiple of 128), `rows` from the block table (`block * block_tokens + position %
block_tokens`), K/V as cached:
    q [tokens, heads, dim]    k_cache, v_cache [slots, kv_heads * dim]    rows [sequences, S] s32    positions [tokens, 1] s32
    result [tokens, heads, dim], f32 or bf16 as q.

A tile is 128 keys. Its K and V rows come by one gather each for all heads (the cost of a gather is per row, not per byte);
the softmax is taken online, with f32 sums. Every row that `rows` names exists: padding points to block 0 and is masked by
position, because a gather out of range ends the whole program.
"""

import nki
import nki.isa as nisa
import nki.language as nl

UNSEEN = -1e30


@nki.jit
def paged_decode(q, k_cache, v_cache, rows, positions, scale):
    """One token a sequence: tokens = sequences, and sequence b sees the keys 0 .. positions[b]."""
    tokens, heads, dim = q.shape
    kv_heads = k_cache.shape[1] // dim
    group = heads // kv_heads
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    for b in nl.affine_range(tokens):
        position = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(dst=position, src=positions[b:b + 1, :])
        # Column block h belongs to K/V head h; partitions are the heads of its group.
        queries = nl.ndarray((dim, heads), dtype=q.dtype, buffer=nl.sbuf)
        nisa.dma_transpose(dst=queries, src=q[b, :, :])
        most, total, sums = _start(group, kv_heads, dim)
        for tile in nl.sequential_range(rows.shape[1] // nl.tile_size.pmax):
            keys, values = _gather(k_cache, v_cache, rows, b, tile)
            seen = _seen(position, tile, group)
            for h in nl.affine_range(kv_heads):
                of_group = queries[:, nl.ds(h * group, group)]
                _attend(of_group, keys, values, seen, scale, h, h, dim, most, total, sums)
        for h in nl.affine_range(kv_heads):
            result = _finish(total, sums, h, group, dim, q.dtype)
            nisa.dma_copy(dst=out[b, nl.ds(h * group, group), :], src=result)
    return out


@nki.jit
def flash_prefill(q, k_cache, v_cache, rows, positions, scale):
    """A chunk of one sequence: rows is [1, S], and the token at position p sees the keys 0 .. p."""
    tokens, heads, dim = q.shape
    kv_heads = k_cache.shape[1] // dim
    group = heads // kv_heads
    most_tokens = nl.tile_size.pmax
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    for part in nl.affine_range((tokens + most_tokens - 1) // most_tokens):
        first = part * most_tokens
        count = min(most_tokens, tokens - first)
        position = nl.ndarray((count, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(dst=position, src=positions[nl.ds(first, count), :])
        for h in nl.affine_range(kv_heads):
            # Column block g belongs to head h * group + g; partitions are tokens.
            most, total, sums = _start(count, group, dim)
            for tile in nl.sequential_range(rows.shape[1] // nl.tile_size.pmax):
                keys, values = _gather(k_cache, v_cache, rows, 0, tile)
                seen = _seen(position, tile, count)
                for g in nl.affine_range(group):
                    queries = nl.ndarray((dim, count), dtype=q.dtype, buffer=nl.sbuf)
                    nisa.dma_transpose(dst=queries, src=q[nl.ds(first, count), h * group + g, :])
                    _attend(queries, keys, values, seen, scale, h, g, dim, most, total, sums)
            for g in nl.affine_range(group):
                result = _finish(total, sums, g, count, dim, q.dtype)
                nisa.dma_copy(dst=out[nl.ds(first, count), h * group + g, :], src=result)
    return out


def _start(partitions, columns, dim):
    """Running maximum, sum of exponentials and sum of values, for `columns` softmaxes side by side."""
    most = nl.full((partitions, columns), UNSEEN, dtype=nl.float32, buffer=nl.sbuf)
    total = nl.zeros((partitions, columns), dtype=nl.float32, buffer=nl.sbuf)
    sums = nl.zeros((partitions, columns * dim), dtype=nl.float32, buffer=nl.sbuf)
    return most, total, sums


def _gather(k_cache, v_cache, rows, sequence, tile):
    """The K and V rows of one tile of keys, all heads: [128, kv_heads * dim] each."""
    count, width = nl.tile_size.pmax, k_cache.shape[1]
    index = nl.ndarray((count, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_transpose(dst=index, src=rows[sequence:sequence + 1, nl.ds(tile * count, count)])
    keys = nl.ndarray((count, width), dtype=k_cache.dtype, buffer=nl.sbuf)
    values = nl.ndarray((count, width), dtype=v_cache.dtype, buffer=nl.sbuf)
    pattern = [[width, count], [1, width]]
    nisa.dma_copy(dst=keys, src=k_cache.ap(pattern=pattern, offset=0, vector_offset=index, indirect_dim=0))
    nisa.dma_copy(dst=values, src=v_cache.ap(pattern=pattern, offset=0, vector_offset=index, indirect_dim=0))
    return keys, values


def _seen(position, tile, partitions):
    """Which keys of a tile each partition's query sees: [partitions, 128]."""
    count = nl.tile_size.pmax
    key = nl.ndarray((1, count), dtype=nl.int32, buffer=nl.sbuf)
    nisa.iota(key, [[1, count]], offset=tile * count)
    shape = (partitions, count)
    return nl.less_equal(nl.broadcast_to(key, shape), nl.broadcast_to(position, shape))


def _attend(queries, keys, values, seen, scale, h, column, dim, most, total, sums):
    """One tile of keys of K/V head h for queries [dim, partitions]; running sums are in column block `column`."""
    count, partitions, f32 = keys.shape[0], queries.shape[1], nl.float32
    head = nl.ds(h * dim, dim)
    turned = nl.ndarray((dim, count), dtype=keys.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=keys[:, head])
    turned_keys = nl.ndarray((dim, count), dtype=keys.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=turned_keys, src=turned)
    products = nl.ndarray((partitions, count), dtype=f32, buffer=nl.psum)
    nisa.nc_matmul(dst=products, stationary=queries, moving=turned_keys)
    scores = nl.ndarray((partitions, count), dtype=f32, buffer=nl.sbuf)
    nisa.activation(dst=scores, op=nl.copy, data=products, scale=scale)
    unseen = nl.full((partitions, count), UNSEEN, dtype=f32, buffer=nl.sbuf)
    scores = nl.where(seen, scores, unseen, dtype=f32)

    here = nl.ndarray((partitions, 1), dtype=f32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=here, op=nl.maximum, data=scores, axis=(1,))
    old = most[:, nl.ds(column, 1)]
    new = nl.ndarray((partitions, 1), dtype=f32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=new, data1=old, data2=here, op=nl.maximum)
    below = nl.ndarray((partitions, 1), dtype=f32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=below, data=new, op0=nl.multiply, operand0=-1.0)
    # What the sums so far are worth under the new maximum.
    fade = nl.ndarray((partitions, 1), dtype=f32, buffer=nl.sbuf)
    nisa.activation(dst=fade, op=nl.exp, data=old, bias=below)
    shares = nl.ndarray((partitions, count), dtype=f32, buffer=nl.sbuf)
    weight = nl.ndarray((partitions, 1), dtype=f32, buffer=nl.sbuf)
    nisa.activation(dst=shares, op=nl.exp, data=scores, bias=below, reduce_op=nl.add, reduce_res=weight,
                    reduce_cmd=nisa.reduce_cmd.reset_reduce)

    turned_psum = nl.ndarray((count, partitions), dtype=f32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned_psum, data=shares)
    turned_shares = nl.ndarray((count, partitions), dtype=values.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=turned_shares, src=turned_psum)
    added = nl.ndarray((partitions, dim), dtype=f32, buffer=nl.psum)
    nisa.nc_matmul(dst=added, stationary=turned_shares, moving=values[:, head])
    sum_here, total_here = sums[:, nl.ds(column * dim, dim)], total[:, nl.ds(column, 1)]
    nisa.tensor_scalar(dst=total_here, data=total_here, op0=nl.multiply, operand0=fade, op1=nl.add, operand1=weight)
    nisa.tensor_scalar(dst=sum_here, data=sum_here, op0=nl.multiply, operand0=fade)
    nisa.tensor_tensor(dst=sum_here, data1=sum_here, data2=added, op=nl.add)
    nisa.tensor_copy(dst=old, src=new)


def _finish(total, sums, column, partitions, dim, dtype):
    """The weighted mean of the values: [partitions, dim]."""
    share = nl.ndarray((partitions, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=share, data=total[:, nl.ds(column, 1)])
    result = nl.ndarray((partitions, dim), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=result, data=sums[:, nl.ds(column * dim, dim)], op0=nl.multiply, operand0=share)
    return result
