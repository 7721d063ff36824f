//! Owns the moving of elements: views, joins, rows.

use crate::value::{Data, Value};

/// Elements to step for one more along each dimension.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        out[d - 1] = out[d] * dims[d];
    }
    out
}

/// Element at index `i` of `dims` is the source's at `base + sum(i * strides)`.
pub fn view(x: &Value, dims: &[usize], strides: &[usize], base: usize) -> Data {
    match &x.data {
        Data::Float(v) => Data::Float(pick(v, dims, strides, base)),
        Data::Int(v) => Data::Int(pick(v, dims, strides, base)),
        Data::Pred(v) => Data::Pred(pick(v, dims, strides, base)),
    }
}

pub fn pick<T: Copy>(from: &[T], dims: &[usize], strides: &[usize], base: usize) -> Vec<T> {
    let Some((last, outer)) = dims.split_last() else { return vec![from[base]] };
    let step = strides[outer.len()];
    let rows: usize = outer.iter().product();
    let mut out = Vec::with_capacity(rows * last);
    let (mut index, mut at) = (vec![0; outer.len()], base);
    for _ in 0..rows {
        match step {
            1 => out.extend_from_slice(&from[at..at + last]),
            0 => out.resize(out.len() + last, from[at]),
            _ => out.extend((0..*last).map(|i| from[at + i * step])),
        }
        for d in (0..outer.len()).rev() {
            index[d] += 1;
            at += strides[d];
            if index[d] < outer[d] {
                break;
            }
            at -= strides[d] * outer[d];
            index[d] = 0;
        }
    }
    out
}

pub fn iota(dims: &[usize], dim: usize) -> Vec<i32> {
    let stride = strides(dims)[dim];
    (0..dims.iter().product::<usize>()).map(|i| (i / stride % dims[dim]) as i32).collect()
}

pub fn concatenate(parts: &[&Value], dim: usize) -> Data {
    fn join<T: Copy>(parts: &[(&[T], usize)], outer: usize) -> Vec<T> {
        (0..outer).flat_map(|o| parts.iter().flat_map(move |(v, run)| &v[o * run..][..*run])).copied().collect()
    }
    let outer: usize = parts[0].shape.dims[..dim].iter().product();
    let run = |p: &Value| p.shape.dims[dim..].iter().product::<usize>();
    match &parts[0].data {
        Data::Float(_) => Data::Float(join(&parts.iter().map(|p| (p.floats(), run(p))).collect::<Vec<_>>(), outer)),
        Data::Int(_) => Data::Int(join(&parts.iter().map(|p| (p.ints(), run(p))).collect::<Vec<_>>(), outer)),
        Data::Pred(_) => Data::Pred(join(&parts.iter().map(|p| (p.preds(), run(p))).collect::<Vec<_>>(), outer)),
    }
}

pub fn gather(x: &Value, rows: &[usize]) -> Data {
    fn take<T: Copy>(from: &[T], rows: &[usize], width: usize) -> Vec<T> {
        rows.iter().flat_map(|r| &from[r * width..][..width]).copied().collect()
    }
    let width = x.shape.dims[1..].iter().product();
    match &x.data {
        Data::Float(v) => Data::Float(take(v, rows, width)),
        Data::Int(v) => Data::Int(take(v, rows, width)),
        Data::Pred(v) => Data::Pred(take(v, rows, width)),
    }
}

pub fn scatter(x: &Value, rows: &[usize], update: &Value) -> Data {
    fn put<T: Copy>(to: &[T], rows: &[usize], update: &[T], width: usize) -> Vec<T> {
        let mut out = to.to_vec();
        for (row, new) in rows.iter().zip(update.chunks_exact(width)) {
            out[row * width..][..width].copy_from_slice(new);
        }
        out
    }
    let width = x.shape.dims[1..].iter().product();
    match &x.data {
        Data::Float(v) => Data::Float(put(v, rows, update.floats(), width)),
        Data::Int(v) => Data::Int(put(v, rows, update.ints(), width)),
        Data::Pred(v) => Data::Pred(put(v, rows, update.preds(), width)),
    }
}
