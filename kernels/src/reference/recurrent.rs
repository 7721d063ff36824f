//! Owns the states of sequences as plain vectors, and the operations that keep them: one sequence, one token after
//! another, one head at a time.

use candle_core::{Device, Result, Tensor};

use super::dense;
use crate::{Batch, ConvSpec, DeltaSpec, ScanSpec, StateLayer};

/// The states of all sequences: `[layer][slot]`, each of its layer's shape.
pub struct States {
    pub layers: Vec<StateLayer>,
    pub slots: usize,
    held: Vec<Vec<Vec<f32>>>,
}

impl States {
    pub fn new(layers: &[StateLayer], slots: usize) -> Self {
        // What was never begun is no number, so that reading it shows.
        let held = layers.iter().map(|l| vec![vec![f32::NAN; l.shape.elements()]; slots]).collect();
        Self { layers: layers.to_vec(), slots, held }
    }

    /// The state of sequence `seq`, zeros when it begins in this step.
    fn of(&mut self, layer: usize, batch: &Batch, seq: usize) -> &mut [f32] {
        let state = &mut self.held[layer][batch.states[seq] as usize];
        if batch.begins(seq) {
            state.fill(0.0);
        }
        state
    }

    /// Runs `token(state, t)`, the row that token `t` gives, over every sequence's tokens in order. `[tokens, width]`
    fn scan(
        &mut self,
        layer: usize,
        batch: &Batch,
        width: usize,
        mut token: impl FnMut(&mut [f32], usize) -> Vec<f32>,
    ) -> Vec<f32> {
        let mut out = vec![0.0; batch.shape.tokens * width];
        for seq in (0..batch.shape.seqs).filter(|seq| !batch.query(*seq).is_empty()) {
            let state = self.of(layer, batch, seq);
            for t in batch.query(seq) {
                out[t * width..][..width].copy_from_slice(&token(state, t));
            }
        }
        out
    }
}

/// `x [tokens, channels]`, `weight [taps * channels]`
pub fn short_conv(
    states: &mut States,
    batch: &Batch,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    spec: &ConvSpec,
) -> Result<Tensor> {
    let (tokens, channels) = x.dims2()?;
    let (rows, weight) = (x.to_vec2::<f32>()?, weight.to_vec1::<f32>()?);
    let bias = bias.map_or(Ok(vec![0.0; channels]), Tensor::to_vec1)?;
    let out = states.scan(spec.state, batch, channels, |state, t| {
        let seen = [&*state, &rows[t]].concat(); // [taps, channels]
        let tap = |c: usize, j: usize| weight[j * channels + c] * seen[j * channels + c];
        let y = (0..channels).map(|c| (0..spec.taps).fold(bias[c], |sum, j| sum + tap(c, j))).collect();
        state.copy_from_slice(&seen[channels..]);
        y
    });
    let y = Tensor::from_vec(out, (tokens, channels), &Device::Cpu)?;
    spec.act.map_or(Ok(y.clone()), |act| dense::gated_act(&y, None, act))
}

/// `x [tokens, heads, dim]`, `dt [tokens, heads]`, `b` and `c [tokens, groups, n]`, `vectors` a, d, dt_bias `[heads]`
pub fn ssm_scan(
    states: &mut States,
    batch: &Batch,
    [x, dt, b, c]: [&Tensor; 4],
    vectors: [&Tensor; 3],
    spec: &ScanSpec,
) -> Result<Tensor> {
    let (tokens, heads, dim) = x.dims3()?;
    let (_, groups, n) = b.dims3()?;
    let (xs, dts) = (x.to_vec3::<f32>()?, dt.to_vec2::<f32>()?);
    let (bs, cs) = (b.to_vec3::<f32>()?, c.to_vec3::<f32>()?);
    let [a, d, dt_bias] = vectors.map(Tensor::to_vec1::<f32>);
    let (a, d, dt_bias) = (a?, d?, dt_bias?);
    let (least, most) = spec.dt_limit;
    let out = states.scan(spec.state, batch, heads * dim, |state, t| {
        let mut y = vec![0.0; heads * dim];
        for h in 0..heads {
            let (b, c) = (&bs[t][h / (heads / groups)], &cs[t][h / (heads / groups)]);
            let step = softplus(dts[t][h] + dt_bias[h]).max(least).min(most);
            let fade = (step * a[h]).exp();
            for p in 0..dim {
                let x = xs[t][h][p];
                let mut sum = 0.0;
                for i in 0..n {
                    let s = &mut state[(h * n + i) * dim + p];
                    *s = fade * *s + step * b[i] * x;
                    sum += c[i] * *s;
                }
                y[h * dim + p] = sum + d[h] * x;
            }
        }
        y
    });
    Tensor::from_vec(out, (tokens, heads, dim), &Device::Cpu)
}

/// `q` and `k [tokens, k_heads, k_dim]`, `v [tokens, heads, v_dim]`, `dt` and `beta [tokens, heads]`, `vectors` a, dt_bias
/// `[heads]`
pub fn gated_delta(
    states: &mut States,
    batch: &Batch,
    [q, k, v, dt, beta]: [&Tensor; 5],
    vectors: [&Tensor; 2],
    spec: &DeltaSpec,
) -> Result<Tensor> {
    let (tokens, heads, v_dim) = v.dims3()?;
    let (_, k_heads, k_dim) = k.dims3()?;
    let (qs, ks, vs) = (q.to_vec3::<f32>()?, k.to_vec3::<f32>()?, v.to_vec3::<f32>()?);
    let (dts, betas) = (dt.to_vec2::<f32>()?, dense::sigmoid(beta)?.to_vec2::<f32>()?);
    let (a, dt_bias) = (vectors[0].to_vec1::<f32>()?, vectors[1].to_vec1::<f32>()?);
    let out = states.scan(spec.state, batch, heads * v_dim, |state, t| {
        let mut y = vec![0.0; heads * v_dim];
        for h in 0..heads {
            let (q, k) = (&qs[t][h / (heads / k_heads)], &ks[t][h / (heads / k_heads)]);
            let fade = (a[h] * softplus(dts[t][h] + dt_bias[h])).exp();
            let state = &mut state[h * k_dim * v_dim..][..k_dim * v_dim]; // [k_dim, v_dim]
            state.iter_mut().for_each(|s| *s *= fade);
            for p in 0..v_dim {
                let held: f32 = (0..k_dim).map(|i| k[i] * state[i * v_dim + p]).sum();
                let change = betas[t][h] * (vs[t][h][p] - held);
                (0..k_dim).for_each(|i| state[i * v_dim + p] += k[i] * change);
                y[h * v_dim + p] = (0..k_dim).map(|i| q[i] * state[i * v_dim + p]).sum();
            }
        }
        y
    });
    Tensor::from_vec(out, (tokens, heads, v_dim), &Device::Cpu)
}

/// `ln(1 + exp(x))`
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
