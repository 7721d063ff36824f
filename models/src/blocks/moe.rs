//! Owns the mixture-of-experts part of a layer: a router, experts in any of the layouts they are stored in, and an expert
//! that every token visits. Knows no family.

use dualgauge_kernels::{Act, ExpertsSpec, Recorder, RouterScore, RouterSpec, Value, Weight};

use super::{Linear, Mlp, MlpOptions, Part};
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
    /// Its bias is read from `correction`.
    pub router: RouterSpec,
    /// Name of the router's matrix.
    pub gate: &'static str,
    pub gate_bias: bool,
    /// Name of a vector that is added to the scores for choosing only.
    pub correction: Option<&'static str>,
    pub stored: ExpertsStored,
    pub shared: Option<SharedExpert>,
    /// The route's weight multiplies what goes into an expert, not what comes out.
    pub weigh_input: bool,
}

/// Under which names, and which way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertsStored {
    /// `experts.E.PART.weight`: gate, up and down matrices one by one.
    Single([&'static str; 3]),
    /// `[experts, 2 * inner, hidden]`, gate rows first, and `[experts, hidden, inner]`.
    Stacked { gate_up: &'static str, down: &'static str },
    /// `[experts, hidden, 2 * inner]` and `[experts, inner, hidden]`: each matrix is turned round at load.
    Turned {
        gate_up: &'static str,
        down: &'static str,
        /// Gate and up alternate, and both products have a bias (`NAME_bias`), as in gpt-oss.
        alternating: bool,
    },
}

/// The expert that every token visits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedExpert {
    pub name: &'static str,
    pub inner: usize,
    /// Name of a row whose product with the token, through a sigmoid, weighs the result.
    pub gate: Option<&'static str>,
}

/// The experts of one layer.
#[derive(Clone, Debug)]
pub struct Moe {
    gate: Linear,
    router: RouterSpec,
    experts: ExpertsSpec,
    shared: Option<Shared>,
}

#[derive(Clone, Debug)]
enum Shared {
    Plain(Mlp),
    /// One expert, chosen always, whose weight is a sigmoid.
    Gated {
        gate: Linear,
        expert: ExpertsSpec,
    },
}

impl MoeOptions {
    /// The experts of most models: softmax over all, weights as they are, matrices one by one.
    pub fn new(hidden: usize, inner: usize, experts: usize, top_k: usize, act: Act) -> Self {
        let score = RouterScore::Softmax;
        let router = RouterSpec { top_k, score, normalise: false, scale: 1.0, bias: None, gains: None, groups: None };
        let stored = ExpertsStored::Single(["gate_proj", "up_proj", "down_proj"]);
        let (gate, gate_bias, correction, shared) = ("gate", false, None, None);
        Self { hidden, inner, experts, act, router, gate, gate_bias, correction, stored, shared, weigh_input: false }
    }
}

impl Moe {
    /// Loads `PREFIX.gate.weight`, `PREFIX.experts.E.PART.weight` and so on. The experts of one layer that are not stored
    /// as they are multiplied are put together on the heap before they are uploaded.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, o: &MoeOptions) -> Result<Self> {
        let part = |name: &str| format!("{prefix}.{name}");
        let gate = Linear::load(loader, &part(o.gate), o.experts, o.hidden, o.gate_bias)?;
        let bias = o.correction.map(|name| loader.vector(&part(name), o.experts)).transpose()?;
        let experts = load_experts(loader, prefix, o)?;
        let shared = match o.shared {
            Some(shared) => Some(load_shared(loader, prefix, o, &shared)?),
            None => None,
        };
        Ok(Self { gate, router: RouterSpec { bias, ..o.router }, experts, shared })
    }
}

impl Part for Moe {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("moe");
        let route = g.router(self.gate.forward(g, x), self.router); // [tokens, top_k] (expert, weight)
        let chosen = g.experts(x, route, self.experts);
        match &self.shared {
            None => chosen,
            Some(Shared::Plain(mlp)) => g.add(chosen, mlp.forward(g, x)),
            Some(Shared::Gated { gate, expert }) => {
                let route = g.router(gate.forward(g, x), ALWAYS); // [tokens, 1]
                g.add(chosen, g.experts(x, route, *expert))
            }
        }
    }
}

/// The route to the only expert, weighed by the sigmoid of its logit.
const ALWAYS: RouterSpec = RouterSpec {
    top_k: 1,
    score: RouterScore::Sigmoid,
    normalise: false,
    scale: 1.0,
    bias: None,
    gains: None,
    groups: None,
};

fn load_experts(loader: &mut Loader<'_>, prefix: &str, o: &MoeOptions) -> Result<ExpertsSpec> {
    let part = |name: &str| format!("{prefix}.{name}");
    let (experts, inner, hidden) = (o.experts, o.inner, o.hidden);
    let plain = |gate_up: Weight, down: Weight| ExpertsSpec {
        gate_up,
        gate_up_bias: None,
        down,
        down_bias: None,
        act: o.act,
        interleaved: false,
        weigh_input: o.weigh_input,
    };
    // GGUF files have one tensor a part, whatever the model's own layout is.
    let of = |name: &str, kind: &str| part(&format!("experts.{name}_proj.{kind}"));
    if loader.has(&of("gate", "weight")) {
        let shape = [experts, inner, hidden];
        let gate_up = loader.paired([&of("gate", "weight"), &of("up", "weight")], &shape)?;
        let mut made = plain(gate_up, loader.tensor(&of("down", "weight"), &[experts, hidden, inner])?);
        if loader.has(&of("gate", "bias")) {
            made.gate_up_bias = Some(loader.paired([&of("gate", "bias"), &of("up", "bias")], &shape[..2])?);
            made.down_bias = Some(loader.rows(&of("down", "bias"), experts, hidden)?);
        }
        return Ok(made);
    }
    match o.stored {
        ExpertsStored::Single(parts) => {
            let names = |parts: &[&str]| -> Vec<String> {
                let of = |e| parts.iter().map(move |part| format!("{prefix}.experts.{e}.{part}.weight"));
                (0..experts).flat_map(of).collect()
            };
            let gate_up = loader.stack(&names(&parts[..2]), 2, inner, hidden)?;
            Ok(plain(gate_up, loader.stack(&names(&parts[2..]), 1, hidden, inner)?))
        }
        ExpertsStored::Stacked { gate_up, down } => {
            let gate_up = loader.tensor(&part(gate_up), &[experts, 2 * inner, hidden])?;
            Ok(plain(gate_up, loader.tensor(&part(down), &[experts, hidden, inner])?))
        }
        ExpertsStored::Turned { gate_up, down, alternating } => {
            let made = plain(
                loader.turned(&part(gate_up), &[experts, 2 * inner, hidden])?,
                loader.turned(&part(down), &[experts, hidden, inner])?,
            );
            if !alternating {
                return Ok(made);
            }
            let mut bias = |name: &str, len| loader.rows(&part(&format!("{name}_bias")), experts, len).map(Some);
            let (gate_up_bias, down_bias) = (bias(gate_up, 2 * inner)?, bias(down, hidden)?);
            Ok(ExpertsSpec { gate_up_bias, down_bias, interleaved: true, ..made })
        }
    }
}

fn load_shared(loader: &mut Loader<'_>, prefix: &str, o: &MoeOptions, shared: &SharedExpert) -> Result<Shared> {
    let at = format!("{prefix}.{}", shared.name);
    let Some(gate) = shared.gate else {
        return Ok(Shared::Plain(Mlp::load(loader, &at, &MlpOptions::gated(o.hidden, shared.inner, o.act))?));
    };
    let name = |part: &str| format!("{at}.{part}.weight");
    let gate_up = loader.stack(&[name("gate_proj"), name("up_proj")], 2, shared.inner, o.hidden)?;
    let down = loader.stack(&[name("down_proj")], 1, o.hidden, shared.inner)?;
    let expert = ExpertsSpec {
        gate_up,
        gate_up_bias: None,
        down,
        down_bias: None,
        act: o.act,
        interleaved: false,
        weigh_input: false,
    };
    Ok(Shared::Gated { gate: Linear::load(loader, &format!("{prefix}.{gate}"), 1, o.hidden, false)?, expert })
}
