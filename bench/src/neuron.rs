//! Owns the arithmetic of what a step on Trainium and Inferentia can cost at least: bytes against memory bandwidth, flops
//! against the matrix engine. Hardware figures are AWS's; nothing here was measured.

use dualgauge_models::source::random::LlamaShape;

/// An instance type: its chips, and what one of them has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Instance {
    pub name: &'static str,
    pub chips: f64,
    /// Per chip.
    pub gigabytes_per_second: f64,
    /// Per chip, dense bf16.
    pub teraflops: f64,
}

/// From the architecture pages of the Neuron documentation.
pub const INSTANCES: [Instance; 4] = [
    Instance { name: "inf2.48xlarge", chips: 12.0, gigabytes_per_second: 820.0, teraflops: 191.0 },
    Instance { name: "trn1.32xlarge", chips: 16.0, gigabytes_per_second: 820.0, teraflops: 191.0 },
    Instance { name: "trn2.48xlarge", chips: 16.0, gigabytes_per_second: 2900.0, teraflops: 667.0 },
    Instance { name: "trn3, 16 chips", chips: 16.0, gigabytes_per_second: 4900.0, teraflops: 671.0 },
];

/// Llama 3 70B.
pub const LLAMA_70B: LlamaShape =
    LlamaShape { hidden: 8192, inner: 28_672, layers: 80, heads: 64, ..LlamaShape::LLAMA_8B };

/// A bucket: what one program computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub prefill: bool,
    /// Tokens of a prefill chunk, sequences of a decode step.
    pub size: usize,
    /// Tokens of context a sequence has.
    pub context: usize,
}

/// What a step moves and computes, over all chips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub bytes: f64,
    pub flops: f64,
    /// New tokens.
    pub tokens: f64,
}

impl Instance {
    /// Seconds that the step takes at least on `chips` of the instance: the slower of memory and matrix engine.
    pub fn bound_seconds(&self, step: Step, chips: f64) -> f64 {
        let memory = step.bytes / (self.gigabytes_per_second * 1e9 * chips);
        memory.max(step.flops / (self.teraflops * 1e12 * chips))
    }
}

/// Parameters that a step multiplies by, and all there are.
pub fn parameters(m: &LlamaShape) -> (f64, f64) {
    let narrow = m.hidden / m.heads * m.kv_heads;
    let layer = 2 * m.hidden * m.hidden + 2 * m.hidden * narrow + 3 * m.hidden * m.inner;
    let (head, norms) = (m.vocab * m.hidden, (2 * m.layers + 1) * m.hidden);
    let multiplied = m.layers * layer + head;
    let table = if m.tied { 0 } else { head };
    (multiplied as f64, (multiplied + table + norms) as f64)
}

/// The step of a bucket with weights of `weight_bytes` each and a K/V cache in bf16. Attention counts every key of the
/// context for decode, and on average half of a chunk's own.
pub fn step(m: &LlamaShape, bucket: Bucket, weight_bytes: f64) -> Step {
    let (multiplied, _) = parameters(m);
    let (size, context) = (bucket.size as f64, bucket.context as f64);
    let head_dim = (m.hidden / m.heads) as f64;
    let per_token = 2.0 * 2.0 * m.kv_heads as f64 * head_dim * m.layers as f64;
    let sequences = if bucket.prefill { 1.0 } else { size };
    let keys = if bucket.prefill { context - size / 2.0 } else { context };
    let attention = 4.0 * m.hidden as f64 * m.layers as f64 * keys * size;
    Step {
        bytes: multiplied * weight_bytes + sequences * context * per_token,
        flops: 2.0 * multiplied * size + attention,
        tokens: size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts that the models' publisher gives.
    #[test]
    fn parameters_are_those_that_were_published() {
        assert_eq!(parameters(&LlamaShape::LLAMA_8B).1, 8_030_261_248.0);
        assert_eq!(parameters(&LLAMA_70B).1, 70_553_706_496.0);
        assert_eq!(parameters(&LlamaShape::LLAMA_1B).1, 1_235_814_400.0);
    }

    /// By hand: 8B in bf16 on two trn2 chips is 15.0 GB over 5.8 TB/s, 2.6 ms.
    #[test]
    fn a_single_sequence_is_bound_by_its_weights() {
        let bucket = Bucket { prefill: false, size: 1, context: 16 };
        let seconds = INSTANCES[2].bound_seconds(step(&LlamaShape::LLAMA_8B, bucket, 2.0), 2.0);
        assert!((seconds * 1e3 - 2.59).abs() < 0.01, "{seconds}");
        // A long chunk is bound by the matrix engine: twice the parameters a token.
        let chunk = Bucket { prefill: true, size: 8192, context: 8192 };
        let long = step(&LlamaShape::LLAMA_8B, chunk, 2.0);
        assert!(long.flops / (667e12 * 2.0) > long.bytes / 5.8e12);
    }
}
