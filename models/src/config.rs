//! Owns a model's configuration: `config.json`, or GGUF metadata in its words, parsed once into numbers that fit each
//! other. Accepts the style of released checkpoints and that of transformers 5 to the same result. What only one
//! family knows is read by that family through [`Keys`].

mod keys;
mod rope;

use dualgauge_kernels::Act;

pub use keys::Keys;
pub use rope::{RopeConfig, RopeScaling, RopeTable};

use crate::family::Family;
use crate::{Error, Result};

/// What all decoder models have in common.
#[derive(Clone, Debug)]
pub struct Config {
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the MLP's matrices.
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Most positions the model was made for.
    pub context: usize,
    pub norm_eps: f32,
    pub act: Act,
    /// The head is the embedding.
    pub tied: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    /// Keys a query sees, for layers with a sliding window.
    pub window: Option<usize>,
    pub rope: RopeConfig,
    /// Tokens that end an answer; empty when only the tokenizer knows.
    pub eos: Vec<u32>,
    /// Everything the file says, for what only one family knows.
    pub keys: Keys,
}

impl Config {
    /// Checks `keys` over the defaults of `family`.
    ///
    /// # Errors
    /// The first key that is missing, out of range or at odds with another, with the name of the file.
    pub(crate) fn new(keys: Keys, family: &Family) -> Result<Self> {
        let keys = keys.over(family.defaults);
        let (hidden, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        let kv_heads = keys.maybe_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads} does not divide num_attention_heads, {heads}");
            return Err(keys.fail("num_key_value_heads", reason));
        }
        // DeepSeek's heads have several sizes; the one that is rotated stands for them.
        let head_dim = match keys.maybe_size("qk_rope_head_dim")?.or(keys.maybe_size("head_dim")?) {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let reason = format!("{heads} does not divide hidden_size, {hidden}, and head_dim is not given");
                return Err(keys.fail("num_attention_heads", reason));
            }
        };
        if heads * head_dim > *Keys::SIZE.end() {
            return Err(keys.fail("head_dim", format!("{heads} heads of {head_dim} are too wide")));
        }
        let context = keys.size("max_position_embeddings")?;
        let rope = RopeConfig::read(&keys, head_dim, context, Some("full_attention"))?;
        let listed = keys.texts("layers_block_type")?.map(|kinds| kinds.len());
        let layers = match (keys.maybe_size("num_hidden_layers")?, listed) {
            (None, Some(listed)) => listed,
            _ => keys.size("num_hidden_layers")?,
        };
        let vocab = keys.size("vocab_size")?;
        if layers > MAX_LAYERS {
            return Err(keys.fail("num_hidden_layers", format!("{layers} is more than {MAX_LAYERS}")));
        }
        Ok(Self {
            vocab,
            hidden,
            // GPT-2 leaves it out.
            inner: keys.maybe_size("intermediate_size")?.unwrap_or(4 * hidden),
            layers,
            heads,
            kv_heads,
            head_dim,
            context,
            norm_eps: norm_eps(&keys)?,
            act: act(&keys)?,
            tied: keys.flag("tie_word_embeddings")?,
            attention_bias: keys.flag("attention_bias")?,
            mlp_bias: keys.flag("mlp_bias")?,
            window: window(&keys)?,
            rope: RopeConfig { interleaved: keys.is_gguf() && family.gguf_interleaved, ..rope },
            eos: eos(&keys, vocab)?,
            keys,
        })
    }

    /// The activation under a key of its own.
    ///
    /// # Errors
    /// When it is missing or not known.
    pub fn act_of(&self, key: &str) -> Result<Act> {
        act_of(&self.keys, key)
    }

    /// Which layers have a sliding window: by `layer_types` where the file states them, else as `otherwise` says.
    ///
    /// # Errors
    /// When there is not one entry for each layer.
    pub fn slides(&self, otherwise: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        match self.keys.texts("layer_types")? {
            Some(types) if types.len() != self.layers => {
                Err(self.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), self.layers)))
            }
            Some(types) => Ok(types.into_iter().map(|kind| kind == "sliding_attention").collect()),
            None => Ok((0..self.layers).map(otherwise).collect()),
        }
    }

    /// As [`Self::slides`]: every layer but each n-th, n being `sliding_window_pattern`.
    ///
    /// # Errors
    /// As [`Self::slides`]; when the pattern is no whole number.
    pub fn slides_but_every(&self) -> Result<Vec<bool>> {
        let every = match self.keys.value("layer_types") {
            Some(_) => None,
            None => self.keys.maybe_size("sliding_window_pattern")?,
        };
        self.slides(|layer| every.is_none_or(|n| !(layer + 1).is_multiple_of(n)))
    }
}

const MAX_LAYERS: usize = 4096;

/// `eos_token_id` as a list, each within the vocabulary.
pub(crate) fn eos(keys: &Keys, vocab: usize) -> Result<Vec<u32>> {
    let ids = keys.ids("eos_token_id")?;
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(keys.fail("eos_token_id", format!("{id} is not in the vocabulary of {vocab}"))),
        None => Ok(ids),
    }
}

/// Qwen files state a window that they then switch off.
fn window(keys: &Keys) -> Result<Option<usize>> {
    let off = keys.value("use_sliding_window").is_some() && !keys.flag("use_sliding_window")?;
    Ok(Some(keys.count("sliding_window")?).filter(|window| *window > 0 && !off))
}

fn norm_eps(keys: &Keys) -> Result<f32> {
    let names = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"];
    let name = names.into_iter().find(|name| keys.value(name).is_some()).unwrap_or(names[0]);
    Ok(keys.positive(name)? as f32)
}

fn act(keys: &Keys) -> Result<Act> {
    act_of(keys, if keys.value("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" })
}

fn act_of(keys: &Keys, key: &str) -> Result<Act> {
    match keys.text(key)? {
        Some("silu" | "swish") => Ok(Act::Silu),
        Some("gelu") => Ok(Act::Gelu),
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Act::GeluTanh),
        Some("relu") => Ok(Act::Relu),
        Some("relu2") => Ok(Act::Relu2),
        // As it is before training; each layer has learned its own.
        Some("xielu") => Ok(Act::Xielu { positive: 0.8, negative: 0.8, beta: 0.5 }),
        Some(other) => Err(keys.fail(key, format!("the activation {other:?} is not known"))),
        None => Err::<_, Error>(keys.fail(key, "is missing")),
    }
}
