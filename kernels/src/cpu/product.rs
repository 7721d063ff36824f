//! Owns how several matrix products run as one job of the pool. Knows no program; the arithmetic is the matrices' own.

use std::ops::Range;

use super::lanes::{self, Kernel, LANES, Lanes, Vectors};
use super::matrix::Matrix;
use super::pool::Pool;
use super::rows::{Apart, Rows};

/// `out[rows, matrix.out] = rows . matrix^T + bias`
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) rows: &'a Rows,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) out: Apart<f32>,
}

/// Runs all `products` over the panels of all of them at once, so that one fork and join serves them.
///
/// # Safety
/// Each `out` has room for its result, nobody else uses it, and no two overlap.
pub(crate) unsafe fn multiply(vectors: Vectors, pool: &Pool, products: &[Product<'_>]) {
    let total = products.iter().map(|p| p.matrix.panels()).sum();
    pool.split(total, Pool::CHUNKS, &|range| {
        let mut first = 0;
        for product in products {
            let end = first + product.matrix.panels();
            let here = range.start.max(first)..range.end.min(end);
            if !here.is_empty() {
                // SAFETY: pieces have panels, and so columns, of their own.
                unsafe { some(vectors, product, here.start - first..here.end - first) };
            }
            first = end;
        }
    });
}

/// # Safety
/// As for [`multiply`]; nobody else writes these panels' columns.
unsafe fn some(vectors: Vectors, product: &Product<'_>, panels: Range<usize>) {
    let Product { matrix, rows, bias, out } = product;
    let (width, each) = (matrix.out(), Matrix::panel_columns());
    // SAFETY: the caller's.
    unsafe { matrix.apply(rows, panels.clone(), *out, width) };
    if let Some(bias) = bias {
        let columns = panels.start * each..(panels.end * each).min(width);
        for row in 0..rows.count() {
            // SAFETY: columns of these panels; see above.
            let out =
                unsafe { std::slice::from_raw_parts_mut(out.get().add(row * width + columns.start), columns.len()) };
            lanes::run(vectors, AddTo { out, x: &bias[columns.clone()] });
        }
    }
}

struct AddTo<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for AddTo<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (out, x) in self.out.chunks_mut(LANES).zip(self.x.chunks(LANES)) {
            L::load_part(out).add(L::load_part(x)).store_part(out);
        }
    }
}
