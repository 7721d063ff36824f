//! What a device can do. This crate knows nothing of models, tokenizers or requests.
//!
//! A model records a [`Program`] through a [`Recorder`]; a [`Backend`] compiles and launches it on a [`Batch`].
//! [`open`] is the only door to a device.

mod arena;
mod backend;
mod batch;
mod cpu;
mod cuda;
mod dtype;
mod error;
pub mod format;
mod neuron;
mod null;
mod op;
mod open;
mod program;
mod recorder;
mod reference;
mod tensor;

pub use arena::Arena;
pub use backend::{
    Affinity, Backend, Candidate, DeviceInfo, DeviceKind, DeviceSpec, Limits, Output, Precision, ProgramId, Ticket,
};
pub use batch::{Batch, BatchShape, KvLayer, KvSpec, StateLayer};
pub use cuda::{Cubin, CudaOptions, compile_kernels, kernel_architectures, kernel_pack, kernel_source_hash};
pub use dtype::{DType, Format};
pub use error::{Error, Result};
pub use neuron::{Built, Finding, Ladder, NeuronAhead, NeuronOptions, neuron_doctor};
pub use null::{NullOptions, null_with};
pub use op::{
    Act, AttnSpec, ConvSpec, Cost, DeltaSpec, ExpertsSpec, Op, RopeSpec, RouterGroups, RouterScore, RouterSpec,
    ScanSpec, Temperature, Value, Weight, WeightId,
};
pub use open::{Opened, isa_paths, open};
pub use program::{Node, Outputs, Program, Tail};
pub use recorder::{Recorder, Scope};
pub use tensor::{HostTensor, Probe, Shape};
