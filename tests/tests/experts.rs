//! Routers and experts on every device against the oracle: all scores, groups and layouts.

use dualgauge_kernels::{Act, ExpertsSpec, Format, HostTensor, RouterGroups, RouterScore, RouterSpec, Weight};
use dualgauge_tests::case::check;
use dualgauge_tests::{Allowed, Case};

/// Token counts around what kernels treat apart: one row, a few, a block and one more.
const TOKENS: [usize; 7] = [1, 2, 5, 8, 16, 17, 33];

fn router_specs(experts: usize, bias: Option<Weight>) -> Vec<RouterSpec> {
    let plain = RouterSpec {
        top_k: 2.min(experts),
        score: RouterScore::Softmax,
        normalise: false,
        scale: 1.0,
        bias: None,
        gains: None,
        groups: None,
    };
    let groups = experts.is_multiple_of(4).then_some(RouterGroups { groups: 4, kept: 2, summed: 2 });
    vec![
        plain,
        RouterSpec { normalise: true, top_k: experts.div_ceil(2), ..plain },
        RouterSpec { score: RouterScore::SoftmaxChosen, top_k: 4.min(experts), ..plain },
        RouterSpec { score: RouterScore::Sigmoid, bias, scale: 2.5, normalise: true, ..plain },
        RouterSpec { score: RouterScore::Sigmoid, bias, scale: 2.5, normalise: true, groups, ..plain },
        RouterSpec { score: RouterScore::Softmax, groups, top_k: 1, ..plain },
        RouterSpec { score: RouterScore::SoftmaxChosen, bias, ..plain },
        RouterSpec { gains: bias, groups: groups.map(|g| RouterGroups { summed: 1, ..g }), ..plain },
    ]
}

/// A router's pairs become visible through experts that answer with constants: expert e adds its weight at column e.
#[test]
fn router() {
    for (seed, experts) in (800..).zip([1, 4, 8, 16, 60]) {
        for option in 0..8 {
            let tokens = TOKENS[(seed as usize + option) % TOKENS.len()];
            check("router", &format!("{experts} experts, option {option}"), seed, tokens, Allowed::F32, &|c| {
                let logits = c.input(experts, 2.0);
                let bias = c.vector(experts);
                let route = c.g.router(logits, router_specs(experts, Some(bias))[option]);
                let x = c.given(experts, &vec![0.0; tokens * experts]);
                let gate_up = zeros(c, [experts, 2, experts]);
                let down = zeros(c, [experts, experts, 1]);
                let one = |i: usize| if i / experts == i % experts { 1.0 } else { 0.0 };
                let identity: Vec<f32> = (0..experts * experts).map(one).collect();
                let down_bias = Some(c.vector_of(&identity));
                let (gate_up_bias, act, interleaved) = (None, Act::Silu, false);
                c.g.experts(
                    x,
                    route,
                    ExpertsSpec { gate_up, gate_up_bias, down, down_bias, act, interleaved, weigh_input: false },
                )
            });
        }
    }
}

fn zeros(c: &mut Case<'_>, shape: [usize; 3]) -> Weight {
    let values = vec![0.0; shape.iter().product()];
    c.upload(HostTensor::from_f32("zeros", shape, &values).expect("a tensor"))
}

#[test]
fn experts() {
    let limited = Act::ClampedSwiglu { alpha: 1.702, limit: 2.0 };
    let options =
        [(Act::Silu, false, false), (Act::GeluTanh, false, true), (limited, true, true), (Act::Silu, true, false)];
    for (seed, format) in (900..).zip(Format::ALL.iter().cycle().take(22)) {
        let format = *format;
        let (act, interleaved, biased) = options[seed as usize % options.len()];
        let tokens = TOKENS[seed as usize % TOKENS.len()];
        let hidden = if format.block_len() == 1 { 40 } else { 256 };
        let inner = if format.block_len() > 32 { 256 } else { 96 };
        let what =
            format!("{format} hidden {hidden}, inner {inner}, {act:?}, interleaved {interleaved}, bias {biased}");
        // Two products one after another, an activation between them.
        let allowed = if format == Format::F32 { Allowed::F32 } else { Allowed { exact: 1e-5, native: 4e-2 } };
        check("experts", &what, seed, tokens, allowed, &|c| {
            let experts = 5;
            let (x, logits) = (c.input(hidden, 1.0), c.input(experts, 2.0));
            let route = c.g.router(logits, router_specs(experts, None)[1]);
            let gate_up = c.matrix([experts, 2 * inner, hidden], format);
            let down = c.matrix([experts, hidden, inner], format);
            let gate_up_bias = biased.then(|| c.vector(experts * 2 * inner));
            let down_bias = biased.then(|| c.vector(experts * hidden));
            let weigh_input = !biased && seed % 4 == 1;
            c.g.experts(x, route, ExpertsSpec { gate_up, gate_up_bias, down, down_bias, act, interleaved, weigh_input })
        });
    }
}
