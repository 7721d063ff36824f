//! Owns checkpoints whose matrices are stored quantised, as `quantization_config` says: finds the parts of a matrix,
//! checks them against each other and repacks them into blocks of a [`dualgauge_kernels::Format`]. Values are never
//! expanded here. Knows no family and no device.
//!
//! Which matrices are quantised is read from the files: a module that the configuration leaves out is stored plainly
//! under its own name, and found there first.

mod mxfp4;
#[cfg(test)]
mod tests;

use dualgauge_kernels::{HostTensor, Shape};
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
}

impl Quantised {
    /// `keys` are those of `quantization_config`.
    ///
    /// # Errors
    /// A method, or a setting of it, that is not known.
    pub(crate) fn new(files: Safetensors, keys: &Keys) -> Result<Self> {
        let method = match keys.text("quant_method")? {
            Some("mxfp4") => Method::Mxfp4,
            other => {
                let other = other.unwrap_or("");
                let reason = format!(
                    "{other:?} is not supported; these are: {}. Other models are to be had as bf16 or GGUF",
                    METHODS.join(", ")
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
        if self.files.contains(name) {
            return self.files.tensor(name);
        }
        let parts = Parts { files: &self.files, name };
        match self.method {
            Method::Mxfp4 => mxfp4::read(&parts).map(Some),
        }
    }

    pub(crate) fn release(&self, name: &str) {
        self.files.release(name);
        self.names(name).iter().for_each(|name| self.files.release(name));
    }

    /// The parts that a matrix may be stored in; the first is there whenever it is.
    fn names(&self, name: &str) -> Vec<String> {
        let parts = match self.method {
            Method::Mxfp4 => mxfp4::PARTS,
        };
        parts.iter().map(|part| format!("{name}{part}")).collect()
    }
}

/// Methods as `quant_method` names them.
const METHODS: [&str; 1] = ["mxfp4"];

/// The parts of one matrix.
struct Parts<'a> {
    files: &'a Safetensors,
    name: &'a str,
}

impl<'a> Parts<'a> {
    /// The part `NAME` + `suffix` of element type `dtype`.
    fn of(&self, suffix: &str, dtype: Dtype) -> Result<Part<'a>> {
        let name = format!("{}{suffix}", self.name);
        let part = self.files.part(&name).ok_or_else(|| self.fail(format!("{suffix} is missing")))?;
        match part.dtype == dtype {
            true => Ok(part),
            false => Err(self.fail(format!("{suffix} has element type {:?}, {dtype:?} is wanted", part.dtype))),
        }
    }

    fn shape(&self, dims: &[usize]) -> Result<Shape> {
        match dims.len() <= Shape::MAX_RANK {
            true => Ok(Shape::new(dims)),
            false => Err(self.fail(format!("{} dimensions", dims.len()))),
        }
    }

    fn fail(&self, reason: impl std::fmt::Display) -> Error {
        Error::file(self.files.file(self.name), format!("tensor {}: {reason}", self.name))
    }
}
