//! Owns the rules of what multiplies or looks up a matrix: embed, linear, and the choice of rows.

use super::{Dot, Lowering, Node, Result, Ty, Value, Weight};
use crate::neuron::hlo::Binary;

impl Lowering<'_> {
    /// Gathered in the stored type, so that only the rows of this step are converted.
    pub(super) fn embed(&mut self, ids: Value, table: Weight) -> Result<Node> {
        let (ids, planes) = (self.node(ids), self.planes(table)?);
        let count: usize = self.b.dims(ids).iter().product();
        let ids = self.b.reshape(ids, &[count]);
        let rows: Vec<Node> = planes.into_iter().map(|plane| self.b.gather_rows(plane, ids)).collect();
        if table.format.is_quantised() {
            return Ok(self.dequantised(table.format, &rows, &[count]));
        }
        Ok(self.b.convert(rows[0], Ty::F32))
    }

    pub(super) fn linear(&mut self, x: Value, w: Weight, bias: Option<Weight>) -> Result<Node> {
        let (x, w) = (self.float(x), self.weight(w)?);
        let inner = self.b.dims(x).len() - 1;
        let y = self.times_weight(x, w, Dot { left_sum: &[inner], right_sum: &[1], ..Dot::default() });
        let Some(bias) = bias else { return Ok(y) };
        let bias = self.float_weight(bias)?;
        let dims = self.b.dims(y);
        let bias = self.along_last(bias, &dims);
        Ok(self.b.binary(Binary::Add, y, bias))
    }

    pub(super) fn head_linear(&mut self, x: Value, w: Weight) -> Result<Node> {
        let (x, w) = (self.float(x), self.weight(w)?);
        let how = Dot { left_sum: &[2], right_sum: &[2], left_batch: &[1], right_batch: &[0] };
        let y = self.times_weight(x, w, how); // [heads, tokens, out]
        Ok(self.b.transpose(y, &[1, 0, 2]))
    }

    pub(super) fn select_rows(&mut self, x: Value) -> Node {
        let x = self.float(x);
        let rows = self.field(self.step.rows.clone(), &[self.program.shape.rows]);
        self.b.gather_rows(x, rows)
    }
}
