//! Owns the paged K/V cache as plain vectors, and causal attention over it, one query of one head at a time.

use candle_core::{D, Device, Result, Tensor};

use super::dense;
use crate::{AttnSpec, Batch, KvSpec};

pub struct Cache {
    pub spec: KvSpec,
    pub blocks: usize,
    /// Keys and values of each layer: `[slots, kv_heads, dim]`.
    layers: Vec<[Vec<f32>; 2]>,
}

impl Cache {
    pub fn new(spec: KvSpec, blocks: usize) -> Self {
        let slots = blocks * spec.block_tokens;
        // What was never written is no number, so that reading it shows.
        let empty = |dim: usize, heads: usize| vec![f32::NAN; slots * heads * dim];
        let layers = spec.layers.iter().map(|l| [empty(l.k_dim, l.kv_heads), empty(l.v_dim, l.kv_heads)]).collect();
        Self { spec, blocks, layers }
    }

    /// Stores `k` and `v` `[tokens, kv_heads, dim]` of the step at its slots, rounded to the cache's type.
    pub fn store(&mut self, batch: &Batch, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        for (held, new) in self.layers[layer].iter_mut().zip([k, v]) {
            let row = new.elem_count() / batch.shape.tokens;
            let new: Vec<f32> = dense::round_to(new, self.spec.dtype)?.flatten_all()?.to_vec1()?;
            for (token, slot) in batch.slots.iter().enumerate() {
                held[*slot as usize * row..][..row].copy_from_slice(&new[token * row..][..row]);
            }
        }
        Ok(())
    }

    /// The rows of one head at `slots`. `[slots, dim]`
    fn gather(&self, layer: usize, part: usize, head: usize, slots: &[usize]) -> Result<Tensor> {
        let shape = self.spec.layers[layer];
        let dim = [shape.k_dim, shape.v_dim][part];
        let held = &self.layers[layer][part];
        let rows = slots.iter().flat_map(|slot| &held[(slot * shape.kv_heads + head) * dim..][..dim]);
        Tensor::from_vec(rows.copied().collect::<Vec<f32>>(), (slots.len(), dim), &Device::Cpu)
    }
}

/// `softmax(scale * q . K^T) . V` over the visible keys. Padding tokens get zeros. `[tokens, heads, v_dim]`
pub fn attend(cache: &Cache, batch: &Batch, q: &Tensor, spec: &AttnSpec, sinks: Option<&[f32]>) -> Result<Tensor> {
    let (tokens, heads, _) = q.dims3()?;
    let shape = cache.spec.layers[spec.layer];
    let mut out = vec![0.0; tokens * heads * shape.v_dim];
    for seq in 0..batch.shape.seqs {
        for token in batch.query(seq) {
            let slots = visible(cache, batch, seq, token, spec);
            let scale = spec.scale * spec.temperature.map_or(1.0, |t| t.at(batch.positions[token] as usize));
            for head in 0..heads {
                let kv_head = head / (heads / shape.kv_heads);
                let query = q.get(token)?.narrow(0, head, 1)?; // [1, dim]
                let keys = cache.gather(spec.layer, 0, kv_head, &slots)?;
                let values = cache.gather(spec.layer, 1, kv_head, &slots)?;
                let mut scores = dense::times(&query.matmul(&keys.t()?)?, scale)?; // [1, slots]
                if let Some(cap) = spec.softcap {
                    scores = dense::softcap(&scores, cap)?;
                }
                let weights = softmax(&scores, sinks.map(|s| s[head]))?;
                let row: Vec<f32> = weights.matmul(&values)?.flatten_all()?.to_vec1()?;
                out[(token * heads + head) * shape.v_dim..][..shape.v_dim].copy_from_slice(&row);
            }
        }
    }
    Tensor::from_vec(out, (tokens, heads, shape.v_dim), &Device::Cpu)
}

/// The slots `token` sees, in order of position: up to its own, within the window or chunk.
fn visible(cache: &Cache, batch: &Batch, seq: usize, token: usize, spec: &AttnSpec) -> Vec<usize> {
    let position = batch.positions[token] as usize;
    let first = match (spec.window, spec.chunk) {
        (Some(window), _) => (position + 1).saturating_sub(window),
        (None, Some(chunk)) => position / chunk * chunk,
        (None, None) => 0,
    };
    let end = batch.context[seq] as usize - 1;
    let last = match spec.ahead {
        true => spec.window.map_or(end, |window| end.min(position + window - 1)),
        false => position,
    };
    let block_tokens = cache.spec.block_tokens;
    let blocks = batch.blocks(seq);
    (first..=last).map(|p| blocks[p / block_tokens] as usize * block_tokens + p % block_tokens).collect()
}

/// Softmax over `[1, n]`; a sink is one more column that takes its share and is dropped.
fn softmax(scores: &Tensor, sink: Option<f32>) -> Result<Tensor> {
    let all = match sink {
        Some(sink) => Tensor::cat(&[scores, &Tensor::new(&[[sink]], &Device::Cpu)?], 1)?,
        None => scores.clone(),
    };
    let exp = all.broadcast_sub(&all.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.narrow(1, 0, scores.dim(1)?)
}
