//! Owns rotary position settings: reads them in both styles of `config.json` and resolves them to what a kernel needs,
//! inverse frequencies and a magnitude, step by step as the transformers library does in f32. Knows no device.

use std::f64::consts::PI;

use super::Keys;
use crate::Result;

/// Rotary embedding of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// Dimensions of a head that are rotated, even.
    pub dim: usize,
    /// Pairs are (2i, 2i + 1) instead of (i, i + dim / 2).
    pub interleaved: bool,
    pub scaling: RopeScaling,
}

/// How a model was stretched beyond the context it was first trained for.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// Round the borders of the ramp to whole dimensions.
        truncate: bool,
        /// Multiplies cosine and sine.
        attention_factor: f64,
    },
    /// One divisor a frequency, as GGUF files keep Llama 3's scaling.
    Factors(Vec<f32>),
}

/// Inverse frequencies in radians a position, `[dim / 2]`, and the factor of cosine and sine.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    pub freqs: Vec<f32>,
    pub magnitude: f32,
}

impl RopeConfig {
    /// Reads `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`. `layer_type` picks one of several
    /// kinds of layer when `rope_parameters` holds an object for each.
    ///
    /// # Errors
    /// When a key is missing, out of range, or of a scaling that is not known.
    pub fn read(keys: &Keys, head_dim: usize, context: usize, layer_type: Option<&str>) -> Result<Self> {
        let parameters = match (keys.object("rope_parameters")?, layer_type) {
            (Some(all), Some(kind)) => Some(all.object(kind)?.unwrap_or(all)),
            (parameters, _) => parameters,
        };
        let own = match &parameters {
            Some(own) => Some(own.clone()),
            None => keys.object("rope_scaling")?,
        };
        let stated = |key: &str| match own.as_ref().map(|own| own.maybe_positive(key)) {
            Some(Ok(Some(v))) => Ok(Some(v)),
            Some(Err(e)) => Err(e),
            _ => keys.maybe_positive(key),
        };
        let theta = stated("rope_theta")?.unwrap_or(10_000.0);
        let share = stated("partial_rotary_factor")?.unwrap_or(1.0);
        let dim = keys.maybe_size("rope_dim")?.unwrap_or((head_dim as f64 * share) as usize);
        if dim == 0 || dim > head_dim || !dim.is_multiple_of(2) {
            let key = if keys.states("rope_dim") { "rope_dim" } else { "partial_rotary_factor" };
            return Err(keys.fail(key, format!("{dim} of {head_dim} dimensions cannot be rotated in pairs")));
        }
        let scaling = match (own, keys.numbers("rope_factors")?) {
            (_, Some(factors)) => divisors(keys, factors, dim)?,
            (Some(own), None) => RopeScaling::read(&own, keys, context)?,
            (None, None) => RopeScaling::None,
        };
        Ok(Self { theta, dim, interleaved: false, scaling })
    }

    /// The numbers a kernel needs.
    pub fn table(&self) -> RopeTable {
        let dim = self.dim as f32;
        // The exponent is rounded to f32 as in the library; the power is then rounded once.
        let powers =
            (0..self.dim).step_by(2).map(|i| f64::from(self.theta as f32).powf((i as f32 / dim).into()) as f32);
        let powers: Vec<f32> = powers.collect();
        let plain = powers.iter().map(|p| 1.0 / p);
        let unit = |freqs: Vec<f32>| RopeTable { freqs, magnitude: 1.0 };
        match &self.scaling {
            RopeScaling::None => unit(plain.collect()),
            RopeScaling::Linear { factor } => unit(plain.map(|f| f / *factor as f32).collect()),
            RopeScaling::Factors(factors) => unit(plain.zip(factors).map(|(f, by)| f / by).collect()),
            RopeScaling::Llama3 { .. } => unit(plain.map(|f| self.llama3(f)).collect()),
            RopeScaling::Yarn { attention_factor, .. } => {
                RopeTable { freqs: self.yarn(&powers), magnitude: *attention_factor as f32 }
            }
        }
    }

    /// Long waves are stretched by the factor, short ones kept, those between blended.
    fn llama3(&self, freq: f32) -> f32 {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = self.scaling else {
            unreachable!("called for llama3 scaling: this is a bug");
        };
        let (factor, original) = (factor as f32, original_context as f32);
        let wavelength = (1.0 / freq) * (2.0 * PI) as f32;
        let longest = (original_context / low_freq_factor) as f32;
        let shortest = (original_context / high_freq_factor) as f32;
        if wavelength > longest {
            freq / factor
        } else if wavelength < shortest {
            freq
        } else {
            let blend =
                ((1.0 / wavelength) * original - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
            (1.0 - blend) * freq / factor + blend * freq
        }
    }

    /// A ramp over the dimensions between interpolated (slow) and original (fast) frequencies.
    fn yarn(&self, powers: &[f32]) -> Vec<f32> {
        let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            unreachable!("called for YaRN scaling: this is a bug");
        };
        // The dimension whose wave turns this often within the original context.
        let border =
            |turns: f64| self.dim as f64 * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (border(beta_fast), border(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(i, power): (usize, &f32)| {
            let kept = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let (stretched, original) = (1.0 / (factor as f32 * power), 1.0 / power);
            stretched * (1.0 - kept) + original * kept
        };
        powers.iter().enumerate().map(blend).collect()
    }
}

impl RopeScaling {
    /// `own` holds the scaling's keys, `keys` the model's.
    fn read(own: &Keys, keys: &Keys, context: usize) -> Result<Self> {
        let kind = match own.text("rope_type")? {
            Some(kind) => kind,
            None => own.text("type")?.unwrap_or("default"),
        };
        let original = || -> Result<f64> {
            let stated = own.maybe_size("original_max_position_embeddings")?;
            let stated = stated.or(keys.maybe_size("original_max_position_embeddings")?);
            Ok(stated.unwrap_or(context) as f64)
        };
        match kind {
            "default" | "mrope" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: own.positive("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: own.positive("factor")?,
                low_freq_factor: own.positive("low_freq_factor")?,
                high_freq_factor: own.positive("high_freq_factor")?,
                original_context: original()?,
            }),
            "yarn" => {
                let original_context = original()?;
                let factor = own.maybe_positive("factor")?.unwrap_or(context as f64 / original_context);
                Ok(Self::Yarn {
                    factor,
                    original_context,
                    beta_fast: own.maybe_positive("beta_fast")?.unwrap_or(32.0),
                    beta_slow: own.maybe_positive("beta_slow")?.unwrap_or(1.0),
                    truncate: !own.states("truncate") || own.flag("truncate")?,
                    attention_factor: attention_factor(own, factor)?,
                })
            }
            other => Err(own.fail("rope_type", format!("{other:?} is not known; these are: linear, llama3, yarn"))),
        }
    }
}

/// As the YaRN paper suggests, unless the file states it, or two scales of it as DeepSeek does.
fn attention_factor(own: &Keys, factor: f64) -> Result<f64> {
    if let Some(stated) = own.maybe_number("attention_factor")? {
        return Ok(stated);
    }
    let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let scale = |key: &str| Ok::<_, crate::Error>(own.maybe_number(key)?.filter(|v| *v != 0.0));
    Ok(match (scale("mscale")?, scale("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => magnitude(mscale) / magnitude(all),
        _ => magnitude(1.0),
    })
}

fn divisors(keys: &Keys, factors: Vec<f64>, dim: usize) -> Result<RopeScaling> {
    if factors.len() != dim / 2 || factors.iter().any(|f| *f <= 0.0) {
        return Err(keys.fail("rope_factors", format!("is not {} numbers above zero", dim / 2)));
    }
    Ok(RopeScaling::Factors(factors.into_iter().map(|f| f as f32).collect()))
}
