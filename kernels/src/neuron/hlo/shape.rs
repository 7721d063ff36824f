//! Owns element types and shapes of HLO, and how they are written.

use super::wire::Message;

/// Element types the Neuron compiler takes and we use; the numbers are XLA's `PrimitiveType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::neuron) enum Ty {
    Pred = 1,
    S8 = 2,
    S32 = 4,
    U8 = 6,
    F16 = 10,
    F32 = 11,
    Bf16 = 16,
}

impl Ty {
    pub const fn bytes(self) -> usize {
        match self {
            Self::Pred | Self::S8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::S32 | Self::F32 => 4,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::Bf16)
    }
}

/// Element type and dimensions, outermost first, laid out row by row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::neuron) struct Shape {
    pub ty: Ty,
    pub dims: Vec<usize>,
}

impl Shape {
    pub fn new(ty: Ty, dims: &[usize]) -> Self {
        Self { ty, dims: dims.to_vec() }
    }

    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.ty.bytes()
    }

    /// `ShapeProto`: element type, dimensions, none of them dynamic, row-major layout.
    pub fn message(&self) -> Message {
        let mut layout = Message::default();
        layout.ints(1, (0..self.dims.len()).rev()).int(16, 1);
        let mut shape = Message::default();
        shape.int(2, self.ty as u64).ints(3, self.dims.iter().copied()).message(5, &layout);
        if !self.dims.is_empty() {
            shape.bytes(6, &vec![0; self.dims.len()]);
        }
        shape
    }
}

/// `ShapeProto` of a tuple.
pub(super) fn tuple<'a>(parts: impl IntoIterator<Item = &'a Shape>) -> Message {
    const TUPLE: u64 = 13;
    let mut shape = Message::default();
    shape.int(2, TUPLE);
    for part in parts {
        shape.message(4, &part.message());
    }
    shape
}
