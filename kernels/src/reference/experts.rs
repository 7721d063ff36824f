//! Owns the mixture of experts: which experts a token goes to, and what they make of it, one token at a time.

use candle_core::{D, Device, Result, Tensor};

use super::dense;
use crate::backend::Candidate;
use crate::{ExpertsSpec, RouterScore, RouterSpec};

/// `logits [tokens, experts]` to `top_k` pairs (expert, weight) a token, best first, ties to the lowest id.
pub fn router(
    logits: &Tensor,
    bias: Option<&Tensor>,
    gains: Option<&Tensor>,
    spec: &RouterSpec,
) -> Result<Vec<Candidate>> {
    let (tokens, experts) = logits.dims2()?;
    let bias: Vec<f32> = bias.map_or(Ok(vec![0.0; experts]), |b| b.to_vec1())?;
    let gains: Vec<f32> = gains.map_or(Ok(vec![1.0; experts]), |g| g.to_vec1())?;
    let scores: Vec<Vec<f32>> = match spec.score {
        RouterScore::Softmax => softmax(logits)?,
        RouterScore::SoftmaxChosen => logits.clone(),
        RouterScore::Sigmoid => dense::sigmoid(logits)?,
    }
    .to_vec2()?;
    let mut routes = Vec::with_capacity(tokens * spec.top_k);
    for scores in scores {
        let biased: Vec<f32> = scores.iter().zip(&bias).map(|(s, b)| s + b).collect();
        let open = groups(&biased, spec);
        let mut order: Vec<usize> = (0..experts).filter(|e| open[e / (experts / groups_of(spec))]).collect();
        order.sort_by(|a, b| biased[*b].total_cmp(&biased[*a]));
        order.truncate(spec.top_k);
        let chosen: Vec<f32> = order.iter().map(|e| scores[*e]).collect();
        let mut chosen = Tensor::from_vec(chosen, (1, spec.top_k), &Device::Cpu)?;
        if spec.score == RouterScore::SoftmaxChosen {
            chosen = softmax(&chosen)?;
        }
        if spec.normalise {
            chosen = chosen.broadcast_div(&chosen.sum_keepdim(1)?)?;
        }
        let weights: Vec<f32> = dense::times(&chosen, spec.scale)?.flatten_all()?.to_vec1()?;
        routes.extend(order.iter().zip(weights).map(|(e, w)| Candidate { id: *e as u32, logit: w * gains[*e] }));
    }
    Ok(routes)
}

/// The decoded tensors of [`ExpertsSpec`].
pub struct Weights<'a> {
    pub gate_up: &'a Tensor,
    pub gate_up_bias: Option<&'a Tensor>,
    pub down: &'a Tensor,
    pub down_bias: Option<&'a Tensor>,
}

/// `sum over the route of weight * (down . (act(gate) * up) + down_bias)`, in the order of the route.
/// `x [tokens, hidden]` -> the same.
pub fn experts(x: &Tensor, route: &[Candidate], w: &Weights<'_>, spec: &ExpertsSpec) -> Result<Tensor> {
    let (tokens, hidden) = x.dims2()?;
    let inner = spec.down.shape.last();
    let top_k = route.len() / tokens;
    let bias = |bias: Option<&Tensor>, expert: usize, len: usize| -> Result<Option<Tensor>> {
        bias.map(|b| b.narrow(0, expert * len, len)).transpose()
    };
    let mut rows = Vec::with_capacity(tokens);
    for token in 0..tokens {
        let row = x.narrow(0, token, 1)?;
        let mut sum = Tensor::zeros((1, hidden), candle_core::DType::F32, &Device::Cpu)?;
        for choice in &route[token * top_k..][..top_k] {
            let expert = choice.id as usize;
            let up_bias = bias(w.gate_up_bias, expert, 2 * inner)?;
            let row = if spec.weigh_input { dense::times(&row, choice.logit)? } else { row.clone() };
            let both = dense::linear(&row, &w.gate_up.get(expert)?, up_bias.as_ref())?; // [1, 2 * inner]
            let (gate, up) = match spec.interleaved {
                true => {
                    let pairs = both.reshape((1, inner, 2))?;
                    (pairs.narrow(2, 0, 1)?.squeeze(2)?, pairs.narrow(2, 1, 1)?.squeeze(2)?)
                }
                false => (both.narrow(1, 0, inner)?, both.narrow(1, inner, inner)?),
            };
            let middle = dense::gated_act(&gate, Some(&up), spec.act)?;
            let down_bias = bias(w.down_bias, expert, hidden)?;
            let y = dense::linear(&middle, &w.down.get(expert)?, down_bias.as_ref())?;
            sum = (sum + if spec.weigh_input { y } else { dense::times(&y, choice.logit)? })?;
        }
        rows.push(sum);
    }
    Tensor::cat(&rows, 0)
}

fn groups_of(spec: &RouterSpec) -> usize {
    spec.groups.map_or(1, |g| g.groups)
}

/// Which groups are open: the best `kept` by the sum of their best scores, ties to the lowest.
fn groups(scores: &[f32], spec: &RouterSpec) -> Vec<bool> {
    let Some(spec) = spec.groups else { return vec![true] };
    let size = scores.len() / spec.groups;
    let sums: Vec<f32> = scores
        .chunks_exact(size)
        .map(|group| {
            let mut group = group.to_vec();
            group.sort_by(|a, b| b.total_cmp(a));
            group.iter().take(spec.summed).sum()
        })
        .collect();
    let mut order: Vec<usize> = (0..spec.groups).collect();
    order.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]));
    (0..spec.groups).map(|g| order[..spec.kept].contains(&g)).collect()
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
