//! Owns products by head: each head of a row has a matrix of its own. All heads run in one job of the pool.
//!
//! An element is summed by its matrix' kernel, and so in one order whatever the number of tokens.

use super::experts::Side;
use super::matrix::Matrix;
use super::rows::{Apart, Rows};
use super::rowwise::Rowwise;

/// Memory that products by head need while they run; kept from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    rows: Vec<Rows>,
    /// `[heads, tokens, in]`
    gathered: Vec<f32>,
    /// `[heads, tokens, out]`
    results: Vec<f32>,
}

/// `x [tokens, heads, in]` to `out [tokens, heads, out]`, by `matrices [heads]`, each `[out, in]`.
///
/// # Safety
/// `out` has room, and nobody else uses it.
pub(crate) unsafe fn run(
    rowwise: Rowwise<'_>,
    matrices: &[Matrix],
    x: &[f32],
    tokens: usize,
    scratch: &mut Scratch,
    out: Apart<f32>,
) {
    let (heads, inner, width) = (matrices.len(), matrices[0].inner(), matrices[0].out());
    let Scratch { rows, gathered, results } = scratch;
    for (buffer, width) in [(&mut *gathered, inner), (results, width)] {
        if buffer.len() < heads * tokens * width {
            buffer.resize(heads * tokens * width, 0.0);
        }
    }
    rows.resize_with(rows.len().max(heads), Rows::new);
    let to = Apart(gathered.as_mut_ptr());
    rowwise.spread(tokens, heads * inner, &|range| {
        for token in range {
            for head in 0..heads {
                let from = &x[(token * heads + head) * inner..][..inner];
                // SAFETY: each token and head has a row of its own.
                unsafe {
                    to.get().add((head * tokens + token) * inner).copy_from_nonoverlapping(from.as_ptr(), inner);
                }
            }
        }
    });
    let all: Vec<(usize, usize, usize)> = (0..heads).map(|head| (head, head * tokens, tokens)).collect();
    let side = Side { matrices, bias: None, inner, out: width };
    side.run(rowwise, &all, gathered, rows, Apart(results.as_mut_ptr()));
    rowwise.spread(tokens, heads * width, &|range| {
        for token in range {
            for head in 0..heads {
                let from = &results[(head * tokens + token) * width..][..width];
                // SAFETY: each token has a row of its own.
                unsafe {
                    out.get().add((token * heads + head) * width).copy_from_nonoverlapping(from.as_ptr(), width);
                }
            }
        }
    });
}
