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
        /// DeepSeek's `mscale_all_dim`: how much larger scores become, for families that scale them by it.
        all_dims: Option<f64>,
    },
    /// One divisor a frequency, as GGUF files keep Llama 3's scaling.
    Factors(Vec<f32>),
    /// One divisor a frequency, for sequences of up to `original_context` tokens, and for longer ones.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        original_context: usize,
        /// Multiplies cosine and sine.
        attention_factor: f64,
    },
    /// Base and exponents are those of the whole head, of which a share is rotated; Gemma 4.
    Proportional {
        share: f64,
        factor: f64,
    },
}

/// Inverse frequencies in radians a position, `[dim / 2]`, and the factor of cosine and sine.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    pub freqs: Vec<f32>,
    /// Of sequences beyond the context the model was first trained for, where those have their own.
    pub long: Option<Vec<f32>>,
    pub magnitude: f32,
}

impl RopeConfig {
    /// Without scaling, of all dimensions.
    pub fn plain(theta: f64, dim: usize) -> Self {
        Self { theta, dim, interleaved: false, scaling: RopeScaling::None }
    }

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
        let mut theta = stated("rope_theta")?.unwrap_or(10_000.0);
        let share = stated("partial_rotary_factor")?.unwrap_or(1.0);
        let kind = own.as_ref().map(rope_type).transpose()?.unwrap_or("default");
        if kind == "proportional" {
            let factor = stated("factor")?.unwrap_or(1.0);
            let scaling = RopeScaling::Proportional { share: share.min(1.0), factor };
            return Ok(Self { theta, dim: head_dim, interleaved: false, scaling });
        }
        let dim = keys.maybe_size("rope_dim")?.unwrap_or((head_dim as f64 * share) as usize);
        if dim == 0 || dim > head_dim || !dim.is_multiple_of(2) {
            let key = if keys.states("rope_dim") { "rope_dim" } else { "partial_rotary_factor" };
            return Err(keys.fail(key, format!("{dim} of {head_dim} dimensions cannot be rotated in pairs")));
        }
        // Dynamic scaling begins beyond the context; Hunyuan states by how much it once ended.
        if let Some(alpha) = stated("alpha")?.filter(|_| kind == "dynamic" && dim > 2) {
            theta *= alpha.powf(dim as f64 / (dim as f64 - 2.0));
        }
        let scaling = match (own, keys.numbers("rope_factors")?) {
            (_, Some(factors)) => divisors(keys, factors, dim)?,
            (Some(own), None) => RopeScaling::read(&own, keys, context, dim)?,
            (None, None) => RopeScaling::None,
        };
        Ok(Self { theta, dim, interleaved: false, scaling })
    }

    /// The longest sequence that is rotated by [`RopeTable::freqs`], where longer ones have frequencies of their own.
    pub fn long_after(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original_context, .. } => Some(original_context),
            _ => None,
        }
    }

    /// The numbers a kernel needs.
    pub fn table(&self) -> RopeTable {
        let dim = self.dim as f32;
        // The exponent is rounded to f32 as in the library; the power is then rounded once.
        let powers =
            (0..self.dim).step_by(2).map(|i| f64::from(self.theta as f32).powf((i as f32 / dim).into()) as f32);
        let powers: Vec<f32> = powers.collect();
        let plain = powers.iter().map(|p| 1.0 / p);
        let unit = |freqs: Vec<f32>| RopeTable { freqs, long: None, magnitude: 1.0 };
        let divided = |by: &[f32]| -> Vec<f32> { powers.iter().zip(by).map(|(p, by)| 1.0 / (by * p)).collect() };
        match &self.scaling {
            RopeScaling::None => unit(plain.collect()),
            RopeScaling::Linear { factor } => unit(plain.map(|f| f / *factor as f32).collect()),
            RopeScaling::Factors(factors) => unit(plain.zip(factors).map(|(f, by)| f / by).collect()),
            RopeScaling::Llama3 { .. } => unit(plain.map(|f| self.llama3(f)).collect()),
            RopeScaling::Yarn { attention_factor, .. } => {
                RopeTable { freqs: self.yarn(&powers), long: None, magnitude: *attention_factor as f32 }
            }
            RopeScaling::LongRope { short, long, attention_factor, .. } => {
                let (freqs, long) = (divided(short), Some(divided(long)));
                RopeTable { freqs, long, magnitude: *attention_factor as f32 }
            }
            RopeScaling::Proportional { share, factor } => {
                let kept = (share * self.dim as f64 / 2.0) as usize;
                let turned = |(i, f): (usize, f32)| if i < kept { f / *factor as f32 } else { 0.0 };
                unit(plain.enumerate().map(turned).collect())
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
    fn read(own: &Keys, keys: &Keys, context: usize, dim: usize) -> Result<Self> {
        let original = || -> Result<f64> {
            let stated = own.maybe_size("original_max_position_embeddings")?;
            let stated = stated.or(keys.maybe_size("original_max_position_embeddings")?);
            Ok(stated.unwrap_or(context) as f64)
        };
        match rope_type(own)? {
            "default" | "mrope" | "dynamic" => Ok(Self::None),
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
                    all_dims: own.maybe_positive("mscale_all_dim")?,
                })
            }
            "longrope" | "su" => {
                let original_context = original()?;
                let factors = |key: &str| match own.numbers(key)? {
                    Some(factors) if factors.len() == dim / 2 && factors.iter().all(|f| *f > 0.0) => {
                        Ok(factors.into_iter().map(|f| f as f32).collect())
                    }
                    _ => Err(own.fail(key, format!("is not {} numbers above zero", dim / 2))),
                };
                let factor = own.maybe_positive("factor")?.unwrap_or(context as f64 / original_context);
                let suggested = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() };
                Ok(Self::LongRope {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    original_context: original_context as usize,
                    attention_factor: own.maybe_number("attention_factor")?.unwrap_or(suggested),
                })
            }
            other => {
                let known = "linear, dynamic, llama3, yarn, longrope, proportional";
                Err(own.fail("rope_type", format!("{other:?} is not known; these are: {known}")))
            }
        }
    }
}

fn rope_type(own: &Keys) -> Result<&str> {
    match own.text("rope_type")? {
        Some(kind) => Ok(kind),
        None => Ok(own.text("type")?.unwrap_or("default")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, head_dim: usize, context: usize) -> RopeTable {
        let keys = Keys::parse("config.json", json).unwrap();
        RopeConfig::read(&keys, head_dim, context, None).unwrap().table()
    }

    /// Wanted values: the library's formulas in f64, computed apart from this code.
    fn check(json: &str, head_dim: usize, context: usize, freqs: &[f64], magnitude: f64) {
        let table = read(json, head_dim, context);
        assert_eq!(table.freqs.len(), freqs.len(), "{json}");
        for (held, wanted) in table.freqs.iter().zip(freqs) {
            assert!((f64::from(*held) / wanted - 1.0).abs() < 2e-6, "{json}: {held} for {wanted}");
        }
        assert!((f64::from(table.magnitude) - magnitude).abs() < 1e-6, "{json}: magnitude {}", table.magnitude);
    }

    #[test]
    fn every_scaling_has_the_librarys_frequencies() {
        check(r#"{"rope_scaling": {"type": "linear", "factor": 4}}"#, 8, 64, &[0.25, 0.025, 0.0025, 0.00025], 1.0);
        let llama3 = r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let wanted = [
            1.0,
            0.0794030091792082,
            0.004700753866357992,
            0.0009115830921521386,
            0.00017677669529663688,
            3.428102195952591e-05,
            6.647869871181236e-06,
            1.2891731721515574e-06,
        ];
        check(llama3, 16, 512, &wanted, 1.0);
        let yarn = r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 4096}}"#;
        let wanted = [
            1.0,
            0.31622776601683794,
            0.1,
            0.02569350598886808,
            0.00625,
            0.0013834964763236657,
            0.00025,
            7.905694150420948e-05,
        ];
        check(yarn, 16, 16384, &wanted, 1.138_629_436_111_989);
        let whole = r#"{"rope_parameters": {"rope_theta": 150000.0, "rope_type": "yarn", "factor": 32.0,
            "truncate": false, "original_max_position_embeddings": 4096}}"#;
        let wanted = [
            1.0,
            0.2254180002028708,
            0.050813274815461475,
            0.006794959489732219,
            0.00045648391922324086,
            1.818833668168956e-05,
            4.0999784818029795e-06,
            9.242089502428301e-07,
        ];
        check(whole, 16, 131072, &wanted, 1.3465735902799727);
    }

    #[test]
    fn magnitudes_come_from_the_file_or_the_factor() {
        let magnitude = |more: &str| {
            let json = format!(r#"{{"rope_scaling": {{"type": "yarn", "factor": 40, {more} "beta_fast": 32}}}}"#);
            read(&json, 16, 4096).magnitude
        };
        assert!((magnitude("") - 1.368_888).abs() < 1e-6);
        assert!((magnitude(r#""mscale": 0.707, "mscale_all_dim": 1.0,"#) - 0.921_042_4).abs() < 1e-6);
        assert!((magnitude(r#""mscale": 1.0, "mscale_all_dim": 1.0,"#) - 1.0).abs() < 1e-6);
        assert!((magnitude(r#""mscale": 2.0,"#) - 1.368_888).abs() < 1e-6, "one scale alone is not used");
        assert_eq!(magnitude(r#""attention_factor": 1.5,"#), 1.5);
    }

    #[test]
    fn a_share_of_the_head_and_kinds_of_layers_are_read() {
        let partial = r#"{"partial_rotary_factor": 0.25}"#;
        assert_eq!(read(partial, 32, 64).freqs.len(), 4);
        let kinds = r#"{"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}}"#;
        let keys = Keys::parse("config.json", kinds).unwrap();
        let theta = |kind| RopeConfig::read(&keys, 8, 64, Some(kind)).unwrap().theta;
        assert_eq!([theta("full_attention"), theta("sliding_attention")], [1e6, 1e4]);
    }
}
