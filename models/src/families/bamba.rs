//! Bamba: most layers mix tokens by Mamba 2, the others by attention; each has a feed-forward part.

use crate::blocks::{
    Attention, AttentionOptions, Decoder, DecoderNames, DecoderOptions, LayerNorms, Mamba, MambaOptions, Mlp,
    MlpOptions, Part, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeConfig};

pub(crate) const FAMILY: Family = Family {
    name: "bamba",
    architectures: &["BambaForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 128000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "tie_word_embeddings": false,
        "attention_bias": false, "mlp_bias": false, "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_conv_bias": true, "mamba_proj_bias": false, "eos_token_id": 2
    }"#,
    build,
};

/// Names of the parts that hybrids of this kind share.
pub(super) const NAMES: DecoderNames = DecoderNames { norm: "model.final_layernorm", ..DecoderNames::USUAL };
pub(super) const NORMS: LayerNorms = LayerNorms { before_feed: Some("pre_ff_layernorm"), ..LayerNorms::BEFORE };

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let attends = c.keys.numbers("attn_layer_indices")?.unwrap_or_default();
    let dim = c.keys.maybe_size("attn_rotary_emb")?.unwrap_or(c.rope.dim);
    if dim > c.head_dim || !dim.is_multiple_of(2) {
        return Err(c.keys.fail("attn_rotary_emb", format!("{dim} of {} cannot be rotated in pairs", c.head_dim)));
    }
    let rope = rope(loader, &RopeConfig { dim, ..c.rope.clone() })?;
    let (attention, mamba) = (AttentionOptions::of(c, rope), MambaOptions::of(c)?);
    let options = DecoderOptions { names: NAMES, layer_norms: NORMS, ..DecoderOptions::USUAL };
    let (mut kv, mut state) = (0, 0);
    Decoder::load(c, loader, FAMILY.name, &options, |loader, layer, at| {
        let mixer: Box<dyn Part> = if attends.contains(&(layer as f64)) {
            kv += 1;
            Box::new(Attention::load(loader, &format!("{at}.self_attn"), kv - 1, &attention)?)
        } else {
            state += 2;
            Box::new(Mamba::load(loader, &format!("{at}.mamba"), state - 2, &mamba)?)
        };
        Ok((mixer, Box::new(Mlp::load(loader, &format!("{at}.feed_forward"), &MlpOptions::of(c))?)))
    })
}
