//! Owns the graph language of the Neuron compiler: a typed builder for XLA's `HloModuleProto` and its writer. Knows no
//! operation of ours; [`super::lower`] speaks it.

mod builder;
mod module;
mod shape;
mod wire;

pub(super) use builder::{Binary, Builder, Compare, Dot, Node, Reduce, Unary};
pub(super) use module::{Module, Port};
pub(super) use shape::{Shape, Ty};
