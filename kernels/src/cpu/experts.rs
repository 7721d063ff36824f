//! Owns mixtures of experts: tokens are grouped by expert, experts that no token chose are not touched, and all experts'
//! products run in one job of the pool. Knows no router.
//!
//! A token's result is the sum over its route, in route order, whatever other tokens chose.

use super::lanes::{self, Kernel, LANES, Lanes};
use super::matrix::Matrix;
use super::product::{self, Product};
use super::rows::{Apart, Rows};
use super::rowwise::{Map, Rowwise};
use crate::{Act, Candidate, Error, Result};

/// The weights of all experts of a layer.
pub(crate) struct Weights<'a> {
    /// Each `[2 * inner, hidden]`.
    pub(crate) gate_up: &'a [Matrix],
    pub(crate) gate_up_bias: Option<&'a [f32]>,
    /// Each `[hidden, inner]`.
    pub(crate) down: &'a [Matrix],
    pub(crate) down_bias: Option<&'a [f32]>,
    pub(crate) act: Act,
    pub(crate) interleaved: bool,
    /// The route's weight multiplies what goes in.
    pub(crate) weigh_input: bool,
}

/// Memory that experts need while they run; kept from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `(expert, first place, count)` of each chosen expert.
    chosen: Vec<(usize, usize, usize)>,
    /// Route entry of each place; places are grouped by expert.
    entries: Vec<usize>,
    /// Place of each route entry.
    places: Vec<usize>,
    rows: Vec<Rows>,
    gathered: Vec<f32>,
    both: Vec<f32>,
    middle: Vec<f32>,
    results: Vec<f32>,
}

impl Scratch {
    /// Groups the route's entries by expert, in order within each.
    fn group(&mut self, route: &[Candidate], experts: usize) -> Result<()> {
        self.entries.clear();
        self.entries.extend(0..route.len());
        self.entries.sort_by_key(|i| route[*i].id);
        self.places.resize(route.len(), 0);
        self.chosen.clear();
        for (place, entry) in self.entries.iter().enumerate() {
            self.places[*entry] = place;
            let expert = route[*entry].id as usize;
            if expert >= experts {
                let reason = format!("a route names expert {expert} of {experts}");
                return Err(Error::Launch { device: "cpu", reason });
            }
            match self.chosen.last_mut() {
                Some((last, _, count)) if *last == expert => *count += 1,
                _ => self.chosen.push((expert, place, 1)),
            }
        }
        if self.rows.len() < self.chosen.len() {
            self.rows.resize_with(self.chosen.len(), Rows::new);
        }
        Ok(())
    }
}

/// `x [tokens, hidden]` to `out` of the same shape.
///
/// # Errors
/// When the route names an expert that does not exist.
///
/// # Safety
/// `out` has room, and nobody else uses it.
pub(crate) unsafe fn run(
    rowwise: Rowwise<'_>,
    w: &Weights<'_>,
    x: &[f32],
    route: &[Candidate],
    tokens: usize,
    scratch: &mut Scratch,
    out: Apart<f32>,
) -> Result<()> {
    scratch.group(route, w.gate_up.len())?;
    let (hidden, inner, places) = (x.len() / tokens, w.down[0].inner(), route.len());
    let top_k = places / tokens;
    let Scratch { chosen, entries, places: place_of, rows, gathered, both, middle, results } = scratch;
    for (buffer, width) in [(&mut *gathered, hidden), (both, 2 * inner), (middle, inner), (results, hidden)] {
        if buffer.len() < places * width {
            buffer.resize(places * width, 0.0);
        }
    }
    let to = Apart(gathered.as_mut_ptr());
    rowwise.spread(places, hidden, &|range| {
        for place in range {
            let from = &x[entries[place] / top_k * hidden..][..hidden];
            // SAFETY: each place has a row of its own.
            let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(place * hidden), hidden) };
            match w.weigh_input {
                true => to.iter_mut().zip(from).for_each(|(to, x)| *to = x * route[entries[place]].logit),
                false => to.copy_from_slice(from),
            }
        }
    });
    let side = Side { matrices: w.gate_up, bias: w.gate_up_bias, inner: hidden, out: 2 * inner };
    side.run(rowwise, chosen, gathered, rows, Apart(both.as_mut_ptr()));
    let to = Apart(middle.as_mut_ptr());
    rowwise.spread(places, inner * 2, &|range| {
        let mut halves = vec![0.0; if w.interleaved { 2 * inner } else { 0 }];
        for place in range {
            let mut row = &both[place * 2 * inner..][..2 * inner];
            if w.interleaved {
                let (gate, up) = halves.split_at_mut(inner);
                for ((pair, gate), up) in row.chunks_exact(2).zip(gate).zip(up) {
                    (*gate, *up) = (pair[0], pair[1]);
                }
                row = &halves;
            }
            let (gate, up) = row.split_at(inner);
            // SAFETY: each place has a row of its own.
            unsafe { rowwise.map_here(Map::Act(w.act), gate, up, Apart(to.get().add(place * inner))) };
        }
    });
    let side = Side { matrices: w.down, bias: w.down_bias, inner, out: hidden };
    side.run(rowwise, chosen, middle, rows, Apart(results.as_mut_ptr()));
    rowwise.spread(tokens, top_k * hidden, &|range| {
        for token in range {
            // SAFETY: each token has a row of its own.
            let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(token * hidden), hidden) };
            let entries = token * top_k..(token + 1) * top_k;
            let (route, places) = (&route[entries.clone()], &place_of[entries]);
            let weighed = w.weigh_input;
            lanes::run(rowwise.vectors, Weighted { route, places, results, weighed, out });
        }
    });
    Ok(())
}

/// Products of several matrices with rows of their own: one of the two of every chosen expert.
pub(crate) struct Side<'a> {
    pub(crate) matrices: &'a [Matrix],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) inner: usize,
    pub(crate) out: usize,
}

impl Side<'_> {
    /// `chosen`: the matrix, its first row in `x` and `out`, and how many it has.
    pub(crate) fn run(
        &self,
        rowwise: Rowwise<'_>,
        chosen: &[(usize, usize, usize)],
        x: &[f32],
        rows: &mut [Rows],
        out: Apart<f32>,
    ) {
        for ((expert, first, count), rows) in chosen.iter().zip(&mut *rows) {
            let x = &x[first * self.inner..][..count * self.inner];
            self.matrices[*expert].pack_rows(rowwise.pool, x, *count, rows);
        }
        let products: Vec<Product<'_>> = chosen
            .iter()
            .zip(rows)
            .map(|((expert, first, _), rows)| Product {
                matrix: &self.matrices[*expert],
                rows,
                bias: self.bias.map(|b| &b[expert * self.out..][..self.out]),
                out: Apart(out.get().wrapping_add(first * self.out)),
            })
            .collect();
        // SAFETY: experts have rows of `out` of their own.
        unsafe { product::multiply(rowwise.vectors, rowwise.pool, &products) };
    }
}

struct Weighted<'a> {
    route: &'a [Candidate],
    places: &'a [usize],
    results: &'a [f32],
    /// The weights are in the results already.
    weighed: bool,
    out: &'a mut [f32],
}

impl Kernel for Weighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { route, places, results, weighed, out } = self;
        let hidden = out.len();
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let mut sum = L::splat(0.0);
            for (choice, place) in route.iter().zip(places) {
                let row = &results[place * hidden..][..hidden];
                let weight = if weighed { 1.0 } else { choice.logit };
                sum = L::load_part(&row[i * LANES..]).fma(L::splat(weight), sum);
            }
            sum.store_part(out);
        }
    }
}
