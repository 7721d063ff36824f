//! Owns tensors under evaluation: floats as f32 whatever their type, rounded to it.

use half::{bf16, f16};

use crate::graph::{Shape, Ty};

#[derive(Clone, Debug)]
pub enum Data {
    Float(Vec<f32>),
    Int(Vec<i32>),
    Pred(Vec<bool>),
}

#[derive(Clone, Debug)]
pub struct Value {
    pub shape: Shape,
    pub data: Data,
}

impl Value {
    /// Rounds floats to the shape's type.
    pub fn new(shape: Shape, mut data: Data) -> Self {
        if let Data::Float(values) = &mut data {
            match shape.ty {
                Ty::Bf16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
                Ty::F16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
                _ => {}
            }
        }
        Self { shape, data }
    }

    /// From device memory.
    pub fn decode(shape: &Shape, bytes: &[u8]) -> Self {
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let data = match shape.ty {
            Ty::Pred => Data::Pred(bytes.iter().map(|b| *b != 0).collect()),
            Ty::S8 => Data::Int(bytes.iter().map(|b| i32::from(*b as i8)).collect()),
            Ty::U8 => Data::Int(bytes.iter().map(|b| i32::from(*b)).collect()),
            Ty::S32 => Data::Int(words().map(i32::from_le_bytes).collect()),
            Ty::F32 => Data::Float(words().map(f32::from_le_bytes).collect()),
            Ty::Bf16 => Data::Float(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
            Ty::F16 => Data::Float(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        };
        Self { shape: shape.clone(), data }
    }

    /// As device memory holds it.
    pub fn encode(&self) -> Vec<u8> {
        match &self.data {
            Data::Pred(v) => v.iter().map(|b| u8::from(*b)).collect(),
            Data::Int(v) if self.shape.ty == Ty::S32 => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::Int(v) => v.iter().map(|v| *v as u8).collect(),
            Data::Float(v) => match self.shape.ty {
                Ty::Bf16 => v.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                Ty::F16 => v.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                _ => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            },
        }
    }

    pub fn floats(&self) -> &[f32] {
        match &self.data {
            Data::Float(v) => v,
            _ => panic!("verified graphs compute floats here"),
        }
    }

    pub fn ints(&self) -> &[i32] {
        match &self.data {
            Data::Int(v) => v,
            _ => panic!("verified graphs compute integers here"),
        }
    }

    pub fn preds(&self) -> &[bool] {
        match &self.data {
            Data::Pred(v) => v,
            _ => panic!("verified graphs compute predicates here"),
        }
    }
}
