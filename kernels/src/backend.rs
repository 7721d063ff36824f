//! Owns the contract between the engine and a device: upload, reserve, compile, launch, wait. One owner thread, plain
//! ids; nothing here knows models, tokenizers or requests.

use std::str::FromStr;

use crate::{
    Batch, BatchShape, CudaOptions, DType, Error, Format, HostTensor, KvSpec, NeuronOptions, Op, Probe, Program,
    Result, StateLayer, Value, Weight,
};

/// A device that runs programs.
///
/// Life: `upload` weights; `reserve_kv`, and `reserve_state` for a model that keeps one; then any number of `compile`, `launch`, `wait`. A launch that fails with an
/// error that is not fatal leaves the device usable.
pub trait Backend: Send {
    fn info(&self) -> &DeviceInfo;
    fn limits(&self) -> &Limits;

    /// The smallest shape this device runs that holds `want`, or `None` when none does. The CPU runs any.
    fn round_up(&self, want: BatchShape) -> Option<BatchShape>;

    /// Whether [`Self::upload`] keeps `tensor` as it is stored. Where not, whoever loads expands it, and says so.
    fn accepts(&self, tensor: &HostTensor<'_>) -> bool {
        !tensor.format.is_quantised()
    }

    /// Copies a tensor to the device, converted to `format`: `[n]` as f32 whatever `format` says, `[out, in]` and
    /// `[experts, out, in]` laid out for the kernels. Borrowed bytes are read once and not kept.
    ///
    /// # Errors
    /// Out of memory; a conversion that the device does not know.
    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight>;

    /// Bytes the device can give to the K/V cache beside its weights and the arena of `largest`. Arithmetic, no run.
    fn kv_budget(&self, largest: &Program) -> u64;

    /// Reserves `blocks` cache blocks, block 0 included. Called once, before `compile`.
    ///
    /// # Errors
    /// Out of memory; a layout the device does not know.
    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()>;

    /// Reserves `slots` slots of state, slot 0 included, for a model with such layers. Called once, before `compile`.
    ///
    /// # Errors
    /// Out of memory; a device without recurrent operations.
    fn reserve_state(&mut self, layers: &[StateLayer], slots: usize) -> Result<()> {
        let _ = (layers, slots);
        let what = "models that keep a state (short_conv, ssm_scan, gated_delta) yet; use --device cpu".into();
        Err(Error::Unsupported { device: "this device", what })
    }

    /// Makes `program` ready to launch.
    ///
    /// # Errors
    /// An operation, format or shape the device does not support.
    fn compile(&mut self, program: &Program) -> Result<ProgramId>;

    /// Frees what `compile` made. The engine keeps a bounded number of programs.
    fn release(&mut self, program: ProgramId);

    /// Starts a step. At most one is under way.
    ///
    /// # Errors
    /// A batch that does not fit the program; a failed or lost device.
    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket>;

    /// The result of a launch.
    ///
    /// # Errors
    /// A failed or lost device.
    fn wait(&mut self, ticket: Ticket) -> Result<Output>;

    /// The microscope: the value `v` as the last launch of `program` left it. Slow; it may rerun the last batch.
    ///
    /// # Errors
    /// When nothing was launched yet, or the device cannot say: a step that went on from a state cannot be rerun.
    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe>;
}

/// What a device is, in words and numbers a person reads at start-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`, `neuron`, `null`, `reference`.
    pub name: String,
    /// Model of the hardware and what of it is used: `AMD EPYC, 2 threads, avx512-bf16-vnni`.
    pub description: String,
    /// True for a stand-in device of the test tree.
    pub simulated: bool,
    /// Memory the device has, in bytes.
    pub memory_bytes: u64,
}

/// What a device restricts. Data, so that the scheduler needs no branches on devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prefill and decode may share a step.
    pub mixed: bool,
    /// Most sequences that may prefill in one step.
    pub prefill_seqs: usize,
    /// Most tokens in one step.
    pub max_tokens: usize,
    /// Most sequences in one step.
    pub max_seqs: usize,
    /// Tokens a K/V block holds.
    pub block_tokens: usize,
    /// Most candidates the tail's `top_k` may return.
    pub max_top_k: usize,
    /// Element type that values have between operations.
    pub activations: DType,
    /// Element type of the K/V cache.
    pub kv_dtype: DType,
}

/// A compiled program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId(pub u32);

/// A step under way. Not `Clone`: it is waited for once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// What a step returns: one entry a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// `[rows]` largest logit, ties to the lowest id.
    pub argmax: Vec<u32>,
    /// `[rows, k]` best candidates, best first; `k` from the program's tail.
    pub top: Vec<Candidate>,
    /// `[rows]` ln(sum(exp(logits))).
    pub log_sum_exp: Vec<f32>,
    /// `[rows, vocab]`, when the program's tail asked for them.
    pub logits: Option<Vec<f32>>,
}

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Candidate {
    pub id: u32,
    pub logit: f32,
}

/// Which device to open and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSpec {
    pub kind: DeviceKind,
    /// Compute threads of the CPU back end; `None`: one a physical core the process may use.
    pub threads: Option<usize>,
    /// Processors that these threads are bound to.
    pub affinity: Affinity,
    /// Force an instruction-set path of the CPU back end (tests); `None`: the best the machine has.
    pub isa: Option<String>,
    pub precision: Precision,
    pub cuda: CudaOptions,
    pub neuron: NeuronOptions,
}

/// Where the compute threads of the CPU back end run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Wherever the system's scheduler puts them, within what the process may use.
    #[default]
    Auto,
    /// A thread a processor, one of each physical core before a second of any.
    List(Vec<usize>),
}

impl FromStr for Affinity {
    type Err = String;

    /// `auto`, or a list such as `0-3,8`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        crate::cpu::parse_list(text).map(Self::List).map_err(|wrong| format!("{wrong}, nor auto"))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// CUDA, else Neuron, else CPU; the choice and its reason are in the start-up log.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
    Neuron,
    /// Plain candle-core f32: the oracle. Slow.
    Reference,
    /// No arithmetic: the token is a hash of all that is visible.
    Null,
}

/// How exactly matrices are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// What the weights' format makes fast: bf16 products for bf16, int8 products for q8_0 and q4; f32 sums.
    #[default]
    Native,
    /// f32 activations and products, weights decoded exactly, K/V cache in f32.
    Exact,
}

/// The error for an operation a device lacks.
pub(crate) fn unsupported(device: &'static str, op: &Op) -> Error {
    Error::Unsupported { device, what: format!("the operation {}", op.name()) }
}
