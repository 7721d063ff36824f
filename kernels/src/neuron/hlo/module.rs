//! Owns a finished module: its bytes, and the tensors it takes and gives by name.

use super::Shape;

/// A serialised `HloModuleProto` and its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::neuron) struct Module {
    pub bytes: Vec<u8>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// One tensor of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::neuron) struct Port {
    pub name: String,
    pub shape: Shape,
}
