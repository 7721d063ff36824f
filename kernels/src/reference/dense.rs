//! Owns the operations that see one token at a time: matrices, norms, rotary embedding, activations.

use candle_core::{D, Device, Result, Tensor};

use crate::op::XIELU_EDGE;
use crate::{Act, Batch, DType, RopeSpec};

/// `x [tokens, heads, in]`, each head by its own matrix of `w [heads, out, in]`. `[tokens, heads, out]`
pub fn head_linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let heads = (0..w.dim(0)?).map(|head| {
        let x = x.narrow(1, head, 1)?.squeeze(1)?.contiguous()?; // [tokens, in]
        linear(&x, &w.get(head)?, None)?.unsqueeze(1)
    });
    Tensor::cat(&heads.collect::<Result<Vec<_>>>()?, 1)
}

/// `x [.., in] . w [out, in]^T + bias`, one row after another: a product of one row has one order of sums, whatever the
/// batch.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, inner) = w.dims2()?;
    let mut dims = x.dims().to_vec();
    let flat = x.reshape(((), inner))?;
    let columns = w.t()?;
    let rows = (0..flat.dim(0)?).map(|i| flat.narrow(0, i, 1)?.matmul(&columns)).collect::<Result<Vec<_>>>()?;
    let y = Tensor::cat(&rows, 0)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    *dims.last_mut().expect("a matrix has a last dimension: this is a bug") = out;
    y.reshape(dims)
}

/// `x / sqrt(mean(x^2) + eps) * (offset + gain)`; the factor is 1 without a gain.
pub fn rms_norm(x: &Tensor, gain: Option<&Tensor>, offset: f32, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let y = x.broadcast_div(&plus(&mean, eps)?.sqrt()?)?;
    match gain {
        // A gain for all groups of a row.
        Some(gain) if gain.elem_count() > x.dim(D::Minus1)? => {
            let groups = gain.reshape(((), x.dim(D::Minus1)?))?;
            y.broadcast_mul(&plus(&groups, offset)?)
        }
        Some(gain) => y.broadcast_mul(&plus(gain, offset)?),
        None => Ok(y),
    }
}

/// `(x - mean) / sqrt(var + eps) * gain + bias`
pub fn layer_norm(x: &Tensor, gain: Option<&Tensor>, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let mut y = centred.broadcast_div(&plus(&variance, eps)?.sqrt()?)?;
    if let Some(gain) = gain {
        y = y.broadcast_mul(gain)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    Ok(y)
}

/// `x [tokens, heads, dim]`: pairs of the first `2 * freqs` dimensions turn by `position * freq`, `long` being the
/// frequencies of long sequences.
pub fn rope(x: &Tensor, batch: &Batch, freqs: &Tensor, long: Option<&Tensor>, spec: &RopeSpec) -> Result<Tensor> {
    let (tokens, heads, dim) = x.dims3()?;
    let half = freqs.elem_count();
    let positions: Vec<f32> = batch.positions.iter().map(|p| *p as f32).collect();
    let positions = Tensor::from_vec(positions, (tokens, 1, 1), &Device::Cpu)?;
    let of_token = |token| if batch.is_long(token) { long.unwrap_or(freqs) } else { freqs };
    let freqs = Tensor::stack(&(0..tokens).map(of_token).collect::<Vec<_>>(), 0)?.unsqueeze(1)?; // [tokens, 1, half]
    let angle = freqs.broadcast_mul(&positions)?;
    let (cos, sin) = (times(&angle.cos()?, spec.magnitude)?, times(&angle.sin()?, spec.magnitude)?);
    let turned = x.narrow(2, 0, 2 * half)?;
    // The two members of each pair. [tokens, heads, half]
    let (a, b) = match spec.interleaved {
        true => {
            let pairs = turned.reshape((tokens, heads, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
        false => (turned.narrow(2, 0, half)?, turned.narrow(2, half, half)?),
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = match spec.interleaved {
        true => Tensor::stack(&[first, second], 3)?.reshape((tokens, heads, 2 * half))?,
        false => Tensor::cat(&[first, second], 2)?,
    };
    match dim - 2 * half {
        0 => Ok(turned),
        rest => Tensor::cat(&[turned, x.narrow(2, 2 * half, rest)?], 2),
    }
}

/// `act(gate) * up`, or `act(gate)`.
pub fn gated_act(gate: &Tensor, up: Option<&Tensor>, act: Act) -> Result<Tensor> {
    let y = match act {
        Act::Silu => (gate * sigmoid(gate)?)?,
        Act::Gelu => (times(gate, 0.5)? * plus(&times(gate, std::f32::consts::FRAC_1_SQRT_2)?.erf()?, 1.0)?)?,
        Act::GeluTanh => {
            let cubic = (gate + times(&(gate.sqr()? * gate)?, 0.044_715)?)?;
            let inner = times(&cubic, (2.0 / std::f32::consts::PI).sqrt())?;
            (times(gate, 0.5)? * plus(&inner.tanh()?, 1.0)?)?
        }
        Act::Relu => gate.relu()?,
        Act::Relu2 => gate.relu()?.sqr()?,
        Act::Xielu { positive, negative, beta } => {
            let above = times(&gate.relu()?.sqr()?, positive)?;
            // Zero where x is above zero.
            let below = (plus(&gate.minimum(0.0)?.minimum(XIELU_EDGE)?.exp()?, -1.0)? - gate)?;
            let below = times(&below.mul(&gate.le(0.0)?.to_dtype(candle_core::DType::F32)?)?, negative)?;
            ((above + below)? + times(gate, beta)?)?
        }
        Act::Sigmoid => sigmoid(gate)?,
        Act::ClampedSwiglu { alpha, limit } => {
            let up = up.expect("the recorder asks for an up value: this is a bug");
            let gate = gate.clamp(f32::NEG_INFINITY, limit)?;
            let up = up.clamp(-limit, limit)?;
            return (&gate * sigmoid(&times(&gate, alpha)?)?)? * plus(&up, 1.0)?;
        }
    };
    match up {
        Some(up) => y * up,
        None => Ok(y),
    }
}

/// `cap * tanh(x / cap)`
pub fn softcap(x: &Tensor, cap: f32) -> Result<Tensor> {
    times(&times(x, 1.0 / cap)?.tanh()?, cap)
}

/// The nearest values that `dtype` can hold, as f32.
pub fn round_to(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F16 => x.to_dtype(candle_core::DType::F16)?.to_dtype(candle_core::DType::F32),
        DType::Bf16 => x.to_dtype(candle_core::DType::BF16)?.to_dtype(candle_core::DType::F32),
        DType::F32 | DType::U32 | DType::Pair => Ok(x.clone()),
    }
}

pub fn times(x: &Tensor, by: f32) -> Result<Tensor> {
    x.broadcast_mul(&Tensor::new(by, &Device::Cpu)?)
}

/// `1 / (1 + exp(-x))`
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    plus(&x.neg()?.exp()?, 1.0)?.recip()
}

fn plus(x: &Tensor, by: f32) -> Result<Tensor> {
    x.broadcast_add(&Tensor::new(by, &Device::Cpu)?)
}
