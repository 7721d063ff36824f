//! Owns comparisons of results: bit for bit, or within a stated tolerance. A failure names the worst place.

use std::fmt;

/// `|held - wanted| <= absolute + relative * max |wanted|`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub absolute: f32,
    pub relative: f32,
}

impl Tolerance {
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };

    /// A part of the largest wanted value, and as much absolutely in case that is 0.
    pub const fn of_largest(relative: f32) -> Self {
        Self { absolute: relative * 1e-3, relative }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:e} + {:e} of the largest", self.absolute, self.relative)
    }
}

/// Panics with `what`, the worst index and both values there, when any value is off by more than `tolerance`. What is
/// not finite must be the same.
pub fn assert_close(what: &str, held: &[f32], wanted: &[f32], tolerance: Tolerance) {
    assert_eq!(held.len(), wanted.len(), "{what}: number of values");
    let largest = wanted.iter().filter(|w| w.is_finite()).fold(0.0f32, |m, w| m.max(w.abs()));
    let allowed = tolerance.absolute + tolerance.relative * largest;
    let mut worst: Option<(usize, f32)> = None;
    let mut count = 0;
    for (i, (h, w)) in held.iter().zip(wanted).enumerate() {
        let off = match h == w || h.is_nan() && w.is_nan() {
            true => 0.0,
            false if h.is_finite() && w.is_finite() => (h - w).abs(),
            false => f32::INFINITY,
        };
        count += usize::from(off > allowed);
        if off > allowed && worst.is_none_or(|(_, o)| off > o) {
            worst = Some((i, off));
        }
    }
    if let Some((i, off)) = worst {
        let (h, w, n) = (held[i], wanted[i], held.len());
        panic!(
            "{what}: {count} of {n} values off; worst at index {i}: {h} for {w}, off by {off:e}, allowed {allowed:e} ({tolerance})"
        );
    }
}

/// Panics with `what` and the first place whose bits differ.
pub fn assert_bits(what: &str, held: &[f32], wanted: &[f32]) {
    assert_eq!(held.len(), wanted.len(), "{what}: number of values");
    let differ = |i: &usize| held[*i].to_bits() != wanted[*i].to_bits();
    let count = (0..held.len()).filter(differ).count();
    if let Some(i) = (0..held.len()).find(differ) {
        let (h, w, n) = (held[i], wanted[i], held.len());
        panic!("{what}: {count} of {n} values are not the same bits; first at index {i}: {h:e} for {w:e}");
    }
}
