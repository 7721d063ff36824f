//! Owns models of random numbers, for tests and benches: no file, any size, the same for the same seed. Knows how to
//! make a number from a seed, a tensor's name and an index, and nothing of what the numbers mean.

use dualgauge_kernels::{Backend, Format, HostTensor, format};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, json};

use crate::config::Keys;
use crate::family::Family;
use crate::loader::{Loader, WeightDtype, Weights};
use crate::{Config, Model, Result};

/// Sizes of a random Llama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlamaShape {
    pub vocab: usize,
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub context: usize,
    pub tied: bool,
    /// How matrices are stored: a format that [`format::encodes`].
    pub format: Format,
}

impl LlamaShape {
    /// Small enough for any test; every dimension is whole blocks of all formats that can be made.
    pub const TINY: Self = Self {
        vocab: 256,
        hidden: 64,
        inner: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        context: 512,
        tied: true,
        format: Format::Bf16,
    };
    /// SmolLM2 135M.
    pub const SMOLLM2_135M: Self = Self {
        vocab: 49_152,
        hidden: 576,
        inner: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        context: 8192,
        tied: true,
        format: Format::Bf16,
    };
    /// Llama 3.2 1B.
    pub const LLAMA_1B: Self = Self {
        vocab: 128_256,
        hidden: 2048,
        inner: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        context: 131_072,
        tied: true,
        format: Format::Bf16,
    };
    /// Llama 3.1 8B.
    pub const LLAMA_8B: Self = Self {
        vocab: 128_256,
        hidden: 4096,
        inner: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        context: 131_072,
        tied: false,
        format: Format::Bf16,
    };

    /// The model's configuration as a checkpoint would state it.
    pub fn config(&self) -> Result<Config> {
        let config = json!({
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "eos_token_id": 2,
        });
        let map: Map<_, _> = config.as_object().cloned().expect("written as an object above: this is a bug");
        Config::new(Keys::new("random", map), Family::of_config(&["LlamaForCausalLM"], None)?)
    }
}

/// A Llama of random weights on `backend`.
///
/// # Errors
/// When the sizes do not fit each other or the device refuses a weight.
pub fn llama(backend: &mut dyn Backend, shape: &LlamaShape, seed: u64) -> Result<Box<dyn Model>> {
    let weights = Weights::Random(Random { seed, tied: shape.tied, format: shape.format });
    let config = shape.config()?;
    let family = Family::of_config(&["LlamaForCausalLM"], None)?;
    (family.build)(&config, &mut Loader::new(&weights, backend, WeightDtype::Auto, &mut |_, _| {}))
}

/// Tensors made when they are asked for.
pub(crate) struct Random {
    seed: u64,
    tied: bool,
    format: Format,
}

impl Random {
    pub(crate) fn contains(&self, name: &str) -> bool {
        !name.ends_with(".bias") && (!self.tied || name != "lm_head.weight")
    }

    /// Vectors are gains around 1, matrices keep the length of what they multiply.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> HostTensor<'static> {
        let (middle, spread, kind) = match shape {
            [_] => (1.0, 0.1, Format::F32),
            [.., inner] => (0.0, (3.0 / *inner as f32).sqrt(), self.format),
            [] => (0.0, 1.0, Format::F32),
        };
        let seed = name.bytes().fold(self.seed, |h, byte| mix(h ^ u64::from(byte)));
        let value = move |i: usize| {
            let word = mix(seed.wrapping_add(i as u64 / 4)) >> (i % 4 * 16);
            middle + spread * f32::from(word as u16 as i16) / 32_768.0
        };
        let row = shape.last().copied().unwrap_or(1);
        let bytes_per_row = kind.bytes(row).expect("shapes of random models are whole blocks: this is a bug");
        let mut bytes = vec![0u8; shape.iter().product::<usize>() / row * bytes_per_row];
        bytes.par_chunks_mut(bytes_per_row).enumerate().for_each(|(r, out)| match kind {
            Format::Bf16 => {
                let values = (r * row..(r + 1) * row).map(value);
                out.chunks_exact_mut(2)
                    .zip(values)
                    .for_each(|(o, v)| o.copy_from_slice(&bf16::from_f32(v).to_le_bytes()));
            }
            _ => {
                let values: Vec<f32> = (r * row..(r + 1) * row).map(value).collect();
                out.copy_from_slice(&format::encode(kind, &values));
            }
        });
        HostTensor::new(name.to_string(), shape, kind, bytes).expect("filled to its shape above: this is a bug")
    }
}

/// One step of SplitMix64: every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_depend_on_seed_and_name_alone() {
        let random = |seed| Random { seed, tied: true, format: Format::Bf16 };
        let values = |seed, name: &str| random(seed).tensor(name, &[8, 64]).to_f32();
        assert_eq!(values(1, "a"), values(1, "a"));
        assert_ne!(values(1, "a"), values(2, "a"));
        assert_ne!(values(1, "a"), values(1, "b"));
        let all = values(1, "a");
        let square = all.iter().map(|v| v * v).sum::<f32>() / all.len() as f32;
        assert!((square * 64.0 - 1.0).abs() < 0.2, "a row of 64 has length 1: {square}");
        assert!(!random(1).contains("lm_head.weight") && random(1).contains("model.norm.weight"));
    }

    #[test]
    fn every_format_that_can_be_made_fits_the_tiny_shape() {
        for kind in Format::ALL.into_iter().filter(|f| format::encodes(*f) && f.block_len() <= 64) {
            let random = Random { seed: 1, tied: false, format: kind };
            assert_eq!(random.tensor("x", &[4, 64]).format, kind);
            assert_eq!(random.tensor("x", &[64]).format, Format::F32);
        }
        LlamaShape::TINY.config().unwrap();
        LlamaShape::LLAMA_8B.config().unwrap();
    }
}
