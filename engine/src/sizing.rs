//! Owns the arithmetic before the first step: what the weights, the largest program, the states and the K/V cache take,
//! and how many tokens fit. Nothing runs for it.

use dualgauge_kernels::{Backend, BatchShape, DeviceInfo, KvSpec, StateLayer, Tail};
use dualgauge_models::Model;

use crate::Error;
use crate::config::EngineConfig;
use crate::runner::record;

/// What was found and decided at start, for the operator to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPlan {
    pub device: DeviceInfo,
    pub weight_bytes: u64,
    /// Memory the largest program's values take.
    pub arena_bytes: u64,
    pub kv_spec: KvSpec,
    pub kv_bytes: u64,
    /// K/V blocks, the reserved one included.
    pub blocks: usize,
    pub block_tokens: usize,
    /// Slots of state, the reserved one included; 0 for a model that keeps none.
    pub state_slots: usize,
    pub state_bytes: u64,
    /// Tokens that the cache holds, of all sequences together.
    pub kv_tokens: usize,
    /// Most tokens of a prompt and its answer together.
    pub max_model_len: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// Most tokens in one step of prompts whose log-probabilities are wanted.
    pub max_logit_rows: usize,
    /// Decisions the operator may want to change: one sentence each.
    pub notes: Vec<String>,
}

/// Logits of prompt tokens that one step may hold.
const LOGIT_BYTES: usize = 32 << 20;

impl StartPlan {
    /// The plan of an engine with `config` on `backend`, after the weights of `model` were uploaded to it.
    ///
    /// # Errors
    /// A field of `config` out of range; a cache that does not hold what was asked; a model that breaks a shape rule.
    pub fn make(backend: &dyn Backend, model: &dyn Model, config: &EngineConfig) -> Result<Self, Error> {
        config.check()?;
        let (limits, spec) = (backend.limits(), model.spec());
        let block_tokens = limits.block_tokens;
        let mut notes = vec![];
        let wanted_len = config.max_model_len.unwrap_or(spec.context);
        if wanted_len > spec.context {
            let message = format!("{wanted_len} is more than the {} positions the model was made for", spec.context);
            return Err(Error::config("max_model_len", message));
        }
        let mut max_num_seqs = config.max_num_seqs.min(limits.max_seqs);
        let max_num_batched_tokens = config.max_num_batched_tokens.min(limits.max_tokens);
        let max_logit_rows = (LOGIT_BYTES / 4 / spec.vocab.max(1)).clamp(1, max_num_batched_tokens);

        let per_sequence = wanted_len.div_ceil(block_tokens);
        let largest = BatchShape {
            tokens: max_num_batched_tokens,
            seqs: max_num_seqs,
            query: max_num_batched_tokens,
            blocks: per_sequence,
            rows: (max_num_seqs + max_logit_rows).min(max_num_batched_tokens),
        };
        let largest = backend.round_up(largest).unwrap_or(largest);
        let tail = Tail { logits: true, ..Tail::default() };
        let program = record(model, largest, tail, block_tokens)?;
        let arena_bytes = program.arena().peak_bytes as u64;
        let mut budget = backend.kv_budget(&program);

        let slot_bytes = StateLayer::slot_bytes(&spec.state_layers);
        let mut state_slots = 0;
        if !spec.state_layers.is_empty() {
            // The K/V cache of a model that attends as well gets half at least.
            let share = if spec.kv_layers.is_empty() { budget } else { budget / 2 };
            let affordable = usize::try_from(share / slot_bytes.max(1)).unwrap_or(usize::MAX);
            if affordable < 2 {
                let message = format!(
                    "the state of one sequence takes {} MiB but only {} MiB are free beside weights and activations",
                    (2 * slot_bytes) >> 20,
                    share >> 20
                );
                return Err(Error::DoesNotFit(message));
            }
            if affordable <= max_num_seqs {
                max_num_seqs = affordable - 1;
                notes.push(format!(
                    "max_num_seqs is {max_num_seqs}: a sequence keeps a state of {} MiB and no more are free",
                    slot_bytes >> 20
                ));
            }
            state_slots = max_num_seqs + 1;
            budget -= state_slots as u64 * slot_bytes;
            if config.prefix_caching {
                notes.push(
                    "the prefix cache is off: this model keeps a state of each sequence, which blocks do not tell"
                        .into(),
                );
            }
        }
        let state_bytes = state_slots as u64 * slot_bytes;

        let kv_spec = KvSpec { layers: spec.kv_layers.clone(), block_tokens, dtype: limits.kv_dtype };
        let block_bytes = kv_spec.block_bytes().max(1);
        let affordable = usize::try_from(budget / block_bytes).unwrap_or(usize::MAX);
        let all = max_num_seqs.saturating_mul(per_sequence).saturating_add(1);
        // Of a model that keeps no K/V blocks are only numbers, and as many as are of use.
        let asked = config
            .kv_bytes
            .filter(|_| !spec.kv_layers.is_empty())
            .map(|bytes| usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX));
        let blocks = match config.kv_blocks.or(asked) {
            Some(blocks) if blocks > affordable => {
                let message = format!(
                    "a K/V cache of {blocks} blocks takes {} MiB but only {} MiB are free beside weights and activations",
                    (blocks as u64).saturating_mul(block_bytes) >> 20,
                    budget >> 20
                );
                return Err(Error::DoesNotFit(message));
            }
            Some(blocks) => blocks,
            None => all.min(affordable),
        }
        // Ids and slots are 32-bit numbers.
        .min(u32::MAX as usize / block_tokens);

        let kv_tokens = blocks.saturating_sub(1) * block_tokens;
        if kv_tokens < wanted_len && (config.max_model_len.is_some() || kv_tokens < 2) {
            let needed = (per_sequence as u64 + 1) * block_bytes;
            // It would fit, were it not for the activations.
            if blocks == affordable && needed <= budget.saturating_add(arena_bytes) {
                let message = format!(
                    "the activations of a step of max_num_batched_tokens {max_num_batched_tokens} and max_num_seqs \
                     {max_num_seqs} take {} MiB and leave {} MiB to the K/V cache, which needs {} MiB for a sequence of \
                     {wanted_len} tokens. Ask for a smaller max_num_batched_tokens or max_num_seqs",
                    arena_bytes >> 20,
                    budget >> 20,
                    needed.div_ceil(1 << 20)
                );
                return Err(Error::DoesNotFit(message));
            }
            let message = format!(
                "max_model_len {wanted_len} needs {} MiB of K/V cache, and the cache has {} MiB: room for {kv_tokens} \
                 tokens. Ask for a shorter max_model_len, or give the cache more memory",
                needed >> 20,
                (blocks as u64 * block_bytes) >> 20
            );
            return Err(Error::DoesNotFit(message));
        }
        let max_model_len = wanted_len.min(kv_tokens);
        if max_model_len < wanted_len {
            notes.push(format!(
                "max_model_len is {max_model_len}, less than the model's {wanted_len}: the K/V cache holds no more"
            ));
        }
        for (name, asked, given) in [
            ("max_num_seqs", config.max_num_seqs, config.max_num_seqs.min(limits.max_seqs)),
            ("max_num_batched_tokens", config.max_num_batched_tokens, max_num_batched_tokens),
        ] {
            if given < asked {
                notes.push(format!("{name} is {given}, less than the {asked} asked for: the device runs no more"));
            }
        }
        Ok(Self {
            device: backend.info().clone(),
            weight_bytes: spec.weight_bytes,
            arena_bytes,
            kv_bytes: (blocks as u64).saturating_mul(kv_spec.block_bytes()),
            kv_spec,
            blocks,
            block_tokens,
            state_slots,
            state_bytes,
            kv_tokens,
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            max_logit_rows,
            notes,
        })
    }
}
