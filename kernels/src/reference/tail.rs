//! Owns the end of a step: masks, the best tokens and the log of the sum. Ties go to the lowest id.

use candle_core::{D, Device, Result, Tensor};

use crate::backend::Candidate;

/// `x [rows, vocab]` with -inf where a bit of `masks` `[rows, ceil(vocab / 32)]` is clear. No masks: `x` as it is.
pub fn mask(x: &Tensor, masks: &[u32]) -> Result<Tensor> {
    if masks.is_empty() {
        return Ok(x.clone());
    }
    let (rows, vocab) = x.dims2()?;
    let words = vocab.div_ceil(32);
    let mut values: Vec<Vec<f32>> = x.to_vec2()?;
    for (row, values) in values.iter_mut().enumerate() {
        for (id, value) in values.iter_mut().enumerate() {
            if masks[row * words + id / 32] >> (id % 32) & 1 == 0 {
                *value = f32::NEG_INFINITY;
            }
        }
    }
    Tensor::from_vec(values.concat(), (rows, vocab), &Device::Cpu)
}

/// `[rows, vocab]` to the index of the largest in each row.
pub fn argmax(x: &Tensor) -> Result<Vec<u32>> {
    Ok(top_k(x, 1)?.iter().map(|c| c.id).collect())
}

/// `[rows, vocab]` to the `k` largest of each row, largest first.
pub fn top_k(x: &Tensor, k: usize) -> Result<Vec<Candidate>> {
    let mut out = vec![];
    for row in x.to_vec2::<f32>()? {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // Zeros of both signs are equal, so that neither wins over a lower id. The sort is stable.
        order.sort_by(|a, b| (row[*b] + 0.0).total_cmp(&(row[*a] + 0.0)));
        out.extend(order[..k].iter().map(|id| Candidate { id: *id as u32, logit: row[*id] }));
    }
    Ok(out)
}

/// `ln(sum(exp(x)))` of each row; -inf where all is forbidden. `[rows]`
pub fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    // A row of -inf alone has no largest finite value to subtract: use 0, and the sum is 0.
    let largest = x.max_keepdim(D::Minus1)?.maximum(f32::MIN)?;
    let sum = x.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?;
    (sum.log()? + largest)?.squeeze(D::Minus1)
}
