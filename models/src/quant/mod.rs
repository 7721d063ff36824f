//! Owns checkpoints whose matrices are stored quantised, as `quantization_config` says: finds the parts of a matrix,
//! checks them against each other and repacks them into blocks of a [`dualgauge_kernels::Format`]. Values are never
//! expanded here, but for matrices whose rows are no whole blocks. Knows no family and no device.
//!
//! Which matrices are quantised is read from the files: a module that the configuration leaves out
//! (`modules_to_not_convert`, `ignore`) is stored plainly under its own name, and is found there first.

mod awq;
mod compressed;
mod fp8;
mod gptq;
mod mxfp4;
mod repack;
#[cfg(test)]
mod tests;

use dualgauge_kernels::HostTensor;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::config::Keys;
use crate::source::{Part, Safetensors};
use crate::{Error, Result};

/// Safetensors files whose matrices may be stored in parts.
pub(crate) struct Quantised {
    files: Safetensors,
    method: Method,
}

/// How a checkpoint's `quantization_config` says that it is stored.
enum Method {
    Mxfp4,
    Fp8(fp8::Fp8),
    Gptq(gptq::Gptq),
    Awq,
    Compressed(fp8::Fp8),
}

/// Methods as `quant_method` names them.
const METHODS: &str = "mxfp4, fp8, fbgemm_fp8, gptq, awq, compressed-tensors";

impl Quantised {
    /// `keys` are those of `quantization_config`.
    ///
    /// # Errors
    /// A method, or a setting of it, that is not known.
    pub(crate) fn new(files: Safetensors, keys: &Keys) -> Result<Self> {
        let method = match keys.text("quant_method")? {
            Some("mxfp4") => Method::Mxfp4,
            Some("fp8" | "fbgemm_fp8") => Method::Fp8(fp8::Fp8::new(keys)?),
            Some("gptq") => Method::Gptq(gptq::Gptq::new(keys)?),
            Some("awq") => awq::check(keys).map(|()| Method::Awq)?,
            Some("compressed-tensors") => Method::Compressed(compressed::new(keys)?),
            other => {
                let reason = format!(
                    "{:?} is not supported; these are: {METHODS}. Most models are also to be had as bf16 or GGUF",
                    other.unwrap_or_default()
                );
                return Err(keys.fail("quant_method", reason));
            }
        };
        Ok(Self { files, method })
    }

    pub(crate) fn files(&self) -> &Safetensors {
        &self.files
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.files.contains(name) || self.files.contains(&self.names(name)[0])
    }

    /// The file a tensor is in, for errors.
    pub(crate) fn file(&self, name: &str) -> &str {
        let first = self.names(name).swap_remove(0);
        self.files.file(if self.files.contains(&first) { &first } else { name })
    }

    /// The tensor as it is stored, or its parts as blocks of one format.
    ///
    /// # Errors
    /// When parts are missing, or at odds with each other or with the configuration.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        if self.files.part(name).is_some_and(|part| matches!(part.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)) {
            return self.files.tensor(name);
        }
        let names = self.names(name);
        let parts = Parts { files: &self.files, name, names: &names };
        let tensor = match &self.method {
            Method::Mxfp4 => mxfp4::read(&parts),
            Method::Fp8(fp8) => fp8.read(&parts, 0),
            Method::Gptq(gptq) => gptq.read(&parts),
            Method::Awq => awq::read(&parts),
            Method::Compressed(fp8) => compressed::read(&parts, fp8),
        };
        tensor.map(Some)
    }

    pub(crate) fn release(&self, name: &str) {
        self.files.release(name);
        self.names(name).iter().for_each(|name| self.files.release(name));
    }

    /// The parts that a matrix may be stored in; the first is there whenever it is (compressed-tensors: or the second).
    fn names(&self, name: &str) -> Vec<String> {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let (stem, parts) = match self.method {
            Method::Mxfp4 => (name, mxfp4::PARTS),
            Method::Fp8(_) => (name, fp8::PARTS),
            Method::Gptq(_) => (stem, gptq::PARTS),
            Method::Awq => (stem, awq::PARTS),
            Method::Compressed(_) => (name, compressed::PARTS),
        };
        parts.iter().map(|part| format!("{stem}{part}")).collect()
    }
}

/// The parts of one matrix.
struct Parts<'a> {
    files: &'a Safetensors,
    /// The matrix.
    name: &'a str,
    /// The parts it may have, as the method lists them.
    names: &'a [String],
}

impl<'a> Parts<'a> {
    /// Part `i`, of one of these element types.
    fn of(&self, i: usize, dtypes: &[Dtype]) -> Result<Part<'a>> {
        let part = self.maybe(i).ok_or_else(|| self.fail(format!("{} is missing", self.names[i])))?;
        match dtypes.contains(&part.dtype) {
            true => Ok(part),
            false => {
                let reason = format!("{} has element type {:?}, {dtypes:?} is wanted", self.names[i], part.dtype);
                Err(self.fail(reason))
            }
        }
    }

    fn maybe(&self, i: usize) -> Option<Part<'a>> {
        self.files.part(&self.names[i])
    }

    /// Part `i` as 32-bit words.
    fn words(&self, i: usize) -> Result<(&'a [usize], Vec<u32>)> {
        let part = self.of(i, &[Dtype::I32, Dtype::U32])?;
        let words = part.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok((part.shape, words.collect()))
    }

    /// Part `i` as scales: numbers, all of them finite.
    fn scales(&self, i: usize) -> Result<(&'a [usize], Vec<f32>)> {
        let part = self.of(i, &[Dtype::F32, Dtype::F16, Dtype::BF16])?;
        let values: Vec<f32> = match part.dtype {
            Dtype::F32 => part.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => part.bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => part.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        };
        match values.iter().all(|v| v.is_finite()) {
            true => Ok((part.shape, values)),
            false => Err(self.fail(format!("{} holds a scale that is no finite number", self.names[i]))),
        }
    }

    /// That part `i` has this shape.
    fn shaped(&self, i: usize, shape: &[usize], wanted: &[usize]) -> Result<()> {
        match shape == wanted {
            true => Ok(()),
            false => Err(self.fail(format!("{} has shape {shape:?}, {wanted:?} is wanted", self.names[i]))),
        }
    }

    /// Rows and columns of part `i`.
    fn matrix(&self, i: usize, shape: &[usize]) -> Result<[usize; 2]> {
        match *shape {
            [a, b] if a > 0 && b > 0 => Ok([a, b]),
            _ => Err(self.fail(format!("{} has shape {shape:?}, a matrix is wanted", self.names[i]))),
        }
    }

    fn fail(&self, reason: impl std::fmt::Display) -> Error {
        let file = self.names.iter().find(|name| self.files.contains(name)).map_or(self.name, String::as_str);
        Error::file(self.files.file(file), format!("tensor {}: {reason}", self.name))
    }
}
