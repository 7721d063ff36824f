//! Mamba 2: every layer is one norm and one Mamba 2 part; nothing attends.

use crate::blocks::{Decoder, DecoderNames, DecoderOptions, GatedNorm, LayerNorms, Mamba, MambaOptions, dt_limit};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

/// The file bounds no context; 32,768 tokens stand for it. Nor has it heads of attention.
pub(crate) const FAMILY: Family = Family {
    name: "mamba2",
    architectures: &["Mamba2ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64,
        "state_size": 128, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": true, "use_bias": false,
        "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false, "eos_token_id": 2,
        "num_attention_heads": 1, "max_position_embeddings": 32768
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let size = |key: &str| c.keys.size(key);
    let bias = c.keys.flag("use_bias")?;
    let mamba = MambaOptions {
        hidden: c.hidden,
        heads: size("num_heads")?,
        head_dim: c.head_dim,
        groups: size("n_groups")?,
        state: size("state_size")?,
        taps: size("conv_kernel")?,
        conv_bias: c.keys.flag("use_conv_bias")?,
        bias: (bias, bias),
        act: c.act,
        norm: GatedNorm::After(1),
        norm_eps: c.norm_eps,
        dt_limit: dt_limit(c)?,
        scales: [1.0; 5],
    };
    let mamba = mamba.check(c, "num_heads")?;
    Decoder::load(c, loader, FAMILY.name, &BACKBONE, |loader, layer, at| {
        Ok((Box::new(Mamba::load(loader, &format!("{at}.mixer"), 2 * layer, &mamba)?), Box::new(())))
    })
}

/// A norm before the one part of each layer, under Mamba's names.
pub(super) const BACKBONE: DecoderOptions = DecoderOptions {
    names: DecoderNames {
        embed: "backbone.embeddings",
        layers: "backbone.layers",
        norm: "backbone.norm_f",
        ..DecoderNames::USUAL
    },
    layer_norms: LayerNorms { before_attention: Some("norm"), before_feed: None, ..LayerNorms::BEFORE },
    ..DecoderOptions::USUAL
};
