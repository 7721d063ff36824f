//! Owns the mixture-of-experts part of a layer: a router and experts that are stored one by one. Knows no family.

use dualgauge_kernels::{Act, ExpertsSpec, Recorder, RouterSpec, Value};

use super::{Linear, Part};
use crate::Result;
use crate::loader::Loader;

/// How the experts are stored and chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeOptions {
    pub hidden: usize,
    /// Width between an expert's matrices.
    pub inner: usize,
    pub experts: usize,
    pub act: Act,
    pub router: RouterSpec,
    /// Names of an expert's gate, up and down matrices.
    pub parts: [&'static str; 3],
}

/// The experts of one layer.
#[derive(Clone, Debug)]
pub struct Moe {
    gate: Linear,
    router: RouterSpec,
    experts: ExpertsSpec,
}

impl Moe {
    /// Loads `PREFIX.gate.weight` and `PREFIX.experts.E.PART.weight`. The experts of one layer are put together on the
    /// heap before they are uploaded.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, o: &MoeOptions) -> Result<Self> {
        let gate = Linear::load(loader, &format!("{prefix}.gate"), o.experts, o.hidden, false)?;
        let names = |parts: &[&str]| -> Vec<String> {
            let of = |e| parts.iter().map(move |part| format!("{prefix}.experts.{e}.{part}.weight"));
            (0..o.experts).flat_map(of).collect()
        };
        let gate_up = loader.stack(&names(&o.parts[..2]), 2, o.inner, o.hidden)?;
        let down = loader.stack(&names(&o.parts[2..]), 1, o.hidden, o.inner)?;
        let experts =
            ExpertsSpec { gate_up, gate_up_bias: None, down, down_bias: None, act: o.act, interleaved: false };
        Ok(Self { gate, router: o.router, experts })
    }
}

impl Part for Moe {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("moe");
        let route = g.router(self.gate.forward(g, x), self.router); // [tokens, top_k] (expert, weight)
        g.experts(x, route, self.experts)
    }
}
