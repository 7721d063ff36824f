//! Owns the choice of experts: scores, groups, the best few and their weights. Knows no expert.
//!
//! Each token by itself. Order is by (biased) score, ties to the lowest id. Tolerance of the weights: 1e-6 relative.

use super::lanes::{self, Kernel, LANES, Lanes};
use super::math;
use super::rows::Apart;
use super::rowwise::Rowwise;
use crate::{Candidate, RouterScore, RouterSpec};

/// `logits [tokens, experts]` to `out [tokens, top_k]`.
///
/// # Safety
/// `out` has room, and nobody else uses it.
pub(crate) unsafe fn route(
    rowwise: Rowwise<'_>,
    spec: &RouterSpec,
    [bias, gains]: [Option<&[f32]>; 2],
    logits: &[f32],
    experts: usize,
    out: Apart<Candidate>,
) {
    rowwise.spread(logits.len() / experts, experts * 16, &|range| {
        let mut token = Token::new(experts);
        for t in range {
            token.scores.copy_from_slice(&logits[t * experts..][..experts]);
            match spec.score {
                RouterScore::Softmax => softmax(rowwise, &mut token.scores),
                RouterScore::Sigmoid => lanes::run(rowwise.vectors, Sigmoid(&mut token.scores)),
                RouterScore::SoftmaxChosen => {}
            }
            token.choose(spec, bias);
            let mut weights: Vec<f32> = token.order[..spec.top_k].iter().map(|e| token.scores[*e]).collect();
            if spec.score == RouterScore::SoftmaxChosen {
                softmax(rowwise, &mut weights);
            }
            if spec.normalise {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            for (i, (e, w)) in token.order.iter().zip(&weights).enumerate() {
                let weight = w * spec.scale;
                let choice = Candidate { id: *e as u32, logit: gains.map_or(weight, |g| weight * g[*e]) };
                // SAFETY: each token has a row of its own.
                unsafe { out.get().add(t * spec.top_k + i).write(choice) };
            }
        }
    });
}

/// Working memory for one token after another.
struct Token {
    scores: Vec<f32>,
    biased: Vec<f32>,
    order: Vec<usize>,
}

impl Token {
    fn new(experts: usize) -> Self {
        Self { scores: vec![0.0; experts], biased: vec![0.0; experts], order: Vec::with_capacity(experts) }
    }

    /// Puts the open experts in order, best first.
    fn choose(&mut self, spec: &RouterSpec, bias: Option<&[f32]>) {
        let Self { scores, biased, order } = self;
        biased.copy_from_slice(scores);
        if let Some(bias) = bias {
            biased.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
        order.clear();
        match spec.groups {
            None => order.extend(0..biased.len()),
            Some(g) => {
                let size = biased.len() / g.groups;
                let sums: Vec<f32> = biased.chunks_exact(size).map(|group| best(group, g.summed)).collect();
                let mut groups: Vec<usize> = (0..g.groups).collect();
                groups.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]));
                groups.truncate(g.kept);
                groups.sort_unstable();
                order.extend(groups.iter().flat_map(|g| g * size..(g + 1) * size));
            }
        }
        // Stable, so ties stay in order of id.
        order.sort_by(|a, b| biased[*b].total_cmp(&biased[*a]));
    }
}

/// The largest score, or the sum of the two largest (of the only one, in a group of one).
fn best(scores: &[f32], summed: usize) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for s in scores {
        if *s > first {
            (first, second) = (*s, first);
        } else if *s > second {
            second = *s;
        }
    }
    if scores.len().min(summed) > 1 { first + second } else { first }
}

fn softmax(rowwise: Rowwise<'_>, x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    lanes::run(rowwise.vectors, Exp { x, max });
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

struct Exp<'a> {
    x: &'a mut [f32],
    max: f32,
}

impl Kernel for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for x in self.x.chunks_mut(LANES) {
            math::exp(L::load_part(x).sub(L::splat(self.max))).store_part(x);
        }
    }
}

struct Sigmoid<'a>(&'a mut [f32]);

impl Kernel for Sigmoid<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for x in self.0.chunks_mut(LANES) {
            math::sigmoid(L::load_part(x)).store_part(x);
        }
    }
}
