//! MiniMax M2: partly rotated heads, norms over all heads of query and key together, experts chosen by biased sigmoids.

use dualgauge_kernels::{RouterScore, RouterSpec};

use super::mixtral::options;
use crate::blocks::{
    AttentionOptions, Decoder, DecoderOptions, ExpertsStored, FeedOptions, MoeOptions, NormKind, QkNorm,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeConfig};

pub(crate) const FAMILY: Family = Family {
    name: "minimax_m2",
    architectures: &["MiniMaxM2ForCausalLM"],
    gguf: &["minimax-m2"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 196608, "rms_norm_eps": 1e-6, "rope_theta": 5000000.0,
        "tie_word_embeddings": false, "attention_bias": false, "num_experts_per_tok": 8, "num_local_experts": 256,
        "eos_token_id": 200020
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let usual = options(c, "num_local_experts", true)?;
    let moe = MoeOptions {
        router: RouterSpec { score: RouterScore::Sigmoid, ..usual.router },
        correction: Some("e_score_correction_bias"),
        stored: ExpertsStored::Single(["w1", "w3", "w2"]),
        ..usual
    };
    // Released files state the rotated dimensions themselves, not their share.
    let dim = c.keys.maybe_size("rotary_dim")?.unwrap_or(c.rope.dim);
    if dim > c.head_dim || !dim.is_multiple_of(2) {
        return Err(c
            .keys
            .fail("rotary_dim", format!("{dim} of {} dimensions cannot be rotated in pairs", c.head_dim)));
    }
    let c = &Config { rope: RopeConfig { dim, ..c.rope.clone() }, ..c.clone() };
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        let attention = AttentionOptions { qk_norm: QkNorm::Whole(NormKind::RMS), ..usual };
        (attention, FeedOptions::Moe("block_sparse_moe", &moe))
    })
}
