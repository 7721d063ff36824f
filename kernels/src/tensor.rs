//! Owns shapes and tensors in host memory. Knows no device.

use std::borrow::Cow;
use std::fmt;

use crate::{DType, Error, Format, Result};

/// Up to four dimensions, outermost first. `Copy`, so that handles can carry it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    dims: [usize; Self::MAX_RANK],
    rank: u8,
}

impl Shape {
    pub const MAX_RANK: usize = 4;

    /// Panics when `dims` has more than four entries; parsers check before.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= Self::MAX_RANK, "a shape has at most four dimensions: this is a bug");
        let mut all = [0; Self::MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, rank: dims.len() as u8 }
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Product of the dimensions; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The last dimension; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The first dimension; 1 for a scalar.
    pub fn first(&self) -> usize {
        self.dims().first().copied().unwrap_or(1)
    }

    /// The same shape with another last dimension.
    pub fn with_last(mut self, last: usize) -> Self {
        self.dims[self.rank as usize - 1] = last;
        self
    }

    /// The same shape with another first dimension.
    pub fn with_first(mut self, first: usize) -> Self {
        self.dims[0] = first;
        self
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self::new(dims)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// A tensor in host memory, in storage `format`: borrowed straight from a mapped file, or owned.
///
/// `bytes.len()` always equals what `shape` and `format` say.
#[derive(Clone, Debug)]
pub struct HostTensor<'a> {
    pub name: Cow<'a, str>,
    pub shape: Shape,
    pub format: Format,
    pub bytes: Cow<'a, [u8]>,
    /// Where the inputs do not stand in their order: which input each column is.
    order: Option<Vec<u32>>,
}

impl<'a> HostTensor<'a> {
    /// # Errors
    /// When the last dimension is no whole number of blocks, or the length of `bytes` is not what shape and format say.
    pub fn new(
        name: impl Into<Cow<'a, str>>,
        shape: impl Into<Shape>,
        format: Format,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self> {
        let (name, shape, bytes) = (name.into(), shape.into(), bytes.into());
        let row = format.bytes(shape.last());
        let whole = shape.dims().iter().try_fold(1usize, |n, d| n.checked_mul(*d)).and_then(|n| format.bytes(n));
        if row.is_none() || whole != Some(bytes.len()) {
            let held = bytes.len();
            return Err(Error::Tensor(format!("{name}: {held} bytes are not a {format} tensor of shape {shape}")));
        }
        Ok(Self { name, shape, format, bytes, order: None })
    }

    /// An owned f32 tensor.
    ///
    /// # Errors
    /// When `values` does not fill `shape`.
    pub fn from_f32(name: impl Into<Cow<'a, str>>, shape: impl Into<Shape>, values: &[f32]) -> Result<Self> {
        Self::new(name, shape, Format::F32, bytemuck::cast_slice::<f32, u8>(values).to_vec())
    }

    /// The same bytes, whose column `i` is input `order[i]`.
    ///
    /// # Errors
    /// When this is no matrix `[out, in]`, or `order` does not name each input once.
    pub fn with_order(mut self, order: Vec<u32>) -> Result<Self> {
        let mut seen = vec![false; self.shape.last()];
        let fresh = |i: &u32| seen.get_mut(*i as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if self.shape.rank() != 2 || order.len() != self.shape.last() || !order.iter().all(fresh) {
            return Err(Error::Tensor(format!("{}: the order does not name each input once", self.name)));
        }
        self.order = Some(order);
        Ok(self)
    }

    /// Which input each column is, where they do not stand in their order.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// All values as f32, rows one after another, inputs in their order.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.elements()];
        crate::format::decode(self.format, &self.bytes, &mut out);
        let Some(order) = &self.order else { return out };
        let mut ordered = vec![0.0; out.len()];
        for (row, values) in ordered.chunks_exact_mut(order.len()).zip(out.chunks_exact(order.len())) {
            order.iter().zip(values).for_each(|(i, value)| row[*i as usize] = *value);
        }
        ordered
    }
}

/// A value read back from a device: the microscope's slide.
#[derive(Clone, Debug)]
pub struct Probe {
    pub shape: Shape,
    pub dtype: DType,
    /// Floats as they are; `U32` converted; `Pair` as id, value, id, value ...
    pub values: Vec<f32>,
}
