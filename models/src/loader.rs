//! Owns the way of weights from a file to a device: finds a tensor under its names, checks its shape, uploads it in the
//! wished format, gives its pages back, counts. Knows no model family.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use dualgauge_kernels::{Backend, Format, HostTensor, Shape, Weight, format};
use rayon::prelude::*;

use crate::quant::Quantised;
use crate::source::{Gguf, Safetensors, random::Random};
use crate::{Error, Result};

/// In which format weights are kept on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// As the file has them.
    #[default]
    Auto,
    Bf16,
    F16,
    F32,
    /// Matrices as q8_0; see [`WeightDtype::format`].
    Q8,
    /// Matrices as q4_0, those of the vocabulary as q8_0.
    Q4,
    /// Matrices as 8-bit floats with a scale each 128 values (32 where rows are no multiple of it), those of the
    /// vocabulary as stored.
    Fp8,
}

impl WeightDtype {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
            Self::Fp8 => "fp8",
        }
    }

    /// What a plain tensor of this Hugging Face name becomes. Vectors stay f32, whatever is wished; a router stays as it is stored, since an
    /// expert chosen wrongly costs more than its few bytes; so do matrices whose rows are no whole blocks.
    fn format(self, name: &str, stored: Format, shape: &Shape) -> Format {
        let vocabulary = ["embed", "lm_head", "wte", "wpe"].iter().any(|part| name.contains(part));
        let router = [".gate.weight", ".shared_expert_gate.weight"].iter().any(|end| name.ends_with(end))
            || name.contains("router");
        let blocks = match self {
            Self::Auto => return stored,
            Self::Bf16 => return Format::Bf16,
            Self::F16 => return Format::F16,
            Self::F32 => return Format::F32,
            _ if router || shape.rank() < 2 => return stored,
            Self::Q8 => Format::Q8_0,
            Self::Q4 if vocabulary => Format::Q8_0,
            Self::Q4 => Format::Q4_0,
            Self::Fp8 if vocabulary => return stored,
            Self::Fp8 if shape.last().is_multiple_of(128) => Format::Fp8G128,
            Self::Fp8 => Format::Fp8G32,
        };
        if shape.last().is_multiple_of(blocks.block_len()) { blocks } else { stored }
    }
}

/// Where tensors come from.
pub(crate) enum Weights {
    Safetensors(Safetensors),
    Quantised(Quantised),
    Gguf(Gguf),
    Random(Random),
}

impl Weights {
    /// Bytes of all tensors in the file.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Safetensors(files) => files.bytes(),
            Self::Quantised(parts) => parts.files().bytes(),
            Self::Gguf(file) => file.bytes(),
            Self::Random(_) => 0,
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(files) => files.contains(name),
            Self::Quantised(parts) => parts.contains(name),
            Self::Gguf(file) => file.tensor(name).is_some(),
            Self::Random(random) => random.contains(name),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<HostTensor<'_>>> {
        match self {
            Self::Safetensors(files) => files.tensor(name),
            Self::Quantised(parts) => parts.tensor(name),
            Self::Gguf(file) => Ok(file.tensor(name)),
            Self::Random(random) => Ok(Some(random.tensor(name, shape))),
        }
    }

    fn release(&self, name: &str) {
        match self {
            Self::Safetensors(files) => files.release(name),
            Self::Quantised(parts) => parts.release(name),
            Self::Gguf(file) => file.release(name),
            Self::Random(_) => {}
        }
    }

    fn file(&self, name: &str) -> &str {
        match self {
            Self::Safetensors(files) => files.file(name),
            Self::Quantised(parts) => parts.file(name),
            Self::Gguf(file) => file.name(),
            Self::Random(_) => "random",
        }
    }
}

/// Uploads the weights of one model to one device.
pub struct Loader<'a> {
    weights: &'a Weights,
    backend: &'a mut dyn Backend,
    dtype: WeightDtype,
    progress: &'a mut dyn FnMut(u64, u64),
    done_bytes: u64,
    parameters: u64,
    weight_bytes: u64,
    loaded: HashMap<String, Weight>,
    /// Bytes before and after of what the device would not keep, by format.
    expanded: BTreeMap<(&'static str, &'static str), (u64, u64)>,
}

impl<'a> Loader<'a> {
    /// `progress` is called with the bytes of the file that are done, and all.
    pub(crate) fn new(
        weights: &'a Weights,
        backend: &'a mut dyn Backend,
        dtype: WeightDtype,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let (loaded, expanded) = (HashMap::new(), BTreeMap::new());
        Self { weights, backend, dtype, progress, done_bytes: 0, parameters: 0, weight_bytes: 0, loaded, expanded }
    }

    /// Whether the checkpoint has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The matrix `[out, inner]`. Asked for twice, it is uploaded once.
    ///
    /// # Errors
    /// When it is missing, has another shape or a format that does not go with the wished one; when the device refuses.
    pub fn matrix(&mut self, name: &str, out: usize, inner: usize) -> Result<Weight> {
        self.tensor(name, &[out, inner])
    }

    /// The `len` numbers of a vector or a scalar, which stay on the host.
    ///
    /// # Errors
    /// When it is missing or has another length.
    pub fn values(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let found = self.find(name).ok_or_else(|| self.fail(name, "is missing"))?.into_owned();
        let tensor = self.weights.tensor(&found, &[len])?.ok_or_else(|| self.fail(name, "is missing"))?;
        if tensor.shape.rank() > 1 || tensor.shape.elements() != len {
            return Err(self.fail(&found, format!("has shape {}, {len} numbers are needed", tensor.shape)));
        }
        let values = tensor.to_f32();
        self.finished(&[found], tensor.bytes.len() as u64);
        Ok(values)
    }

    /// The numbers of a tensor of this shape, which stay on the host.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn values_of(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (found, tensor) = self.read(name, shape)?;
        let values = tensor.to_f32();
        self.finished(&[found], tensor.bytes.len() as u64);
        Ok(values)
    }

    /// The vector `[len]`, kept as f32.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Weight> {
        self.tensor(name, &[len])
    }

    /// The tensor of this shape.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let Some(weight) = self.loaded.get(name).filter(|w| w.shape.dims() == shape) {
            return Ok(*weight);
        }
        let (found, tensor) = self.read(name, shape)?;
        let bytes = tensor.bytes.len() as u64;
        let weight = self.upload(name, tensor)?;
        self.finished(&[found], bytes);
        self.loaded.insert(name.into(), weight);
        Ok(weight)
    }

    /// Matrices of the same `[out, inner]` as one `[names, out, inner]`: experts that are stored one by one. `names`
    /// may list several matrices an expert, which then stand below each other: `[names / group, group * out, inner]`.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn stack(&mut self, names: &[String], group: usize, out: usize, inner: usize) -> Result<Weight> {
        let (mut bytes, mut format, mut found) = (vec![], None, vec![]);
        for name in names {
            let (place, tensor) = self.read(name, &[out, inner])?;
            if *format.get_or_insert(tensor.format) != tensor.format {
                return Err(self.fail(name, "has another format than its neighbours"));
            }
            if tensor.order().is_some() {
                return Err(self.fail(name, "has its inputs in an order of its own, which experts cannot have"));
            }
            bytes.extend_from_slice(&tensor.bytes);
            self.weights.release(&place);
            found.push(place);
        }
        let format = format.expect("a stack has at least one matrix: this is a bug");
        let done = bytes.len() as u64;
        let shape = [names.len() / group, group * out, inner];
        let weight = self.upload(&names[0], HostTensor::new(names[0].clone(), shape, format, bytes)?)?;
        self.finished(&found, done);
        Ok(weight)
    }

    /// Two tensors `[experts, ..]` of the same shape as one in which each expert has the first's part, then the second's:
    /// `[experts, 2 * out, inner]`, or a vector, kept as f32, where they are `[experts, out]`.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn paired(&mut self, names: [&str; 2], shape: &[usize]) -> Result<Weight> {
        let ((first, a), (second, b)) = (self.read(names[0], shape)?, self.read(names[1], shape)?);
        if a.format != b.format {
            return Err(self.fail(names[1], "has another format than its neighbour"));
        }
        let each = (a.bytes.len() / shape[0]).max(1);
        let parts = a.bytes.chunks_exact(each).zip(b.bytes.chunks_exact(each));
        let bytes: Vec<u8> = parts.flat_map(|(a, b)| [a, b]).flatten().copied().collect();
        let done = bytes.len() as u64;
        let whole = match shape {
            [experts, out] => Shape::new(&[experts * 2 * out]),
            [experts, out, rest @ ..] => Shape::new(&[&[*experts, 2 * out], rest].concat()),
            _ => unreachable!("experts have vectors or matrices: this is a bug"),
        };
        let weight = self.upload(names[0], HostTensor::new(names[0].to_string(), whole, a.format, bytes)?)?;
        self.finished(&[first, second], done);
        Ok(weight)
    }

    /// The tensor of this shape, `[.., out, inner]`, that is stored `[.., inner, out]`: each matrix is turned on the heap.
    /// Blocks stand along the inner dimension, so what is in blocks is not turned, and stored in this shape.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn turned(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        let [lead @ .., out, inner] = shape else { unreachable!("a matrix has two dimensions: this is a bug") };
        let (out, inner) = (*out, *inner);
        let found = self.find(name).ok_or_else(|| self.fail(name, "is missing"))?;
        let stored = [lead, &[inner, out]].concat();
        if self.weights.tensor(&found, &stored)?.is_some_and(|tensor| tensor.format.is_quantised()) {
            return self.tensor(name, shape);
        }
        let (found, tensor) = self.read(name, &stored)?;
        let (each, done) = (tensor.format.block_bytes(), tensor.bytes.len() as u64);
        let mut bytes = vec![0; tensor.bytes.len()];
        let matrix = (out * inner * each).max(1);
        bytes.par_chunks_exact_mut(matrix).zip(tensor.bytes.par_chunks_exact(matrix)).for_each(|(to, from)| {
            for (o, row) in to.chunks_exact_mut(inner * each).enumerate() {
                for (i, value) in row.chunks_exact_mut(each).enumerate() {
                    value.copy_from_slice(&from[(i * out + o) * each..][..each]);
                }
            }
        });
        let weight = self.upload(name, HostTensor::new(name.to_string(), shape, tensor.format, bytes)?)?;
        self.finished(&[found], done);
        Ok(weight)
    }

    /// Rows `first .. first + out` of each of `heads` equal parts of a matrix `[heads * part, inner]`, as
    /// `[heads, out, inner]`; with `turn`, as `[heads, inner, out]`. Blocks are decoded first: a part of them may not be
    /// whole, and turned round they would lie across.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn heads(
        &mut self,
        name: &str,
        [heads, part, inner]: [usize; 3],
        rows: Range<usize>,
        turn: bool,
    ) -> Result<Weight> {
        let (found, tensor) = self.read(name, &[heads * part, inner])?;
        let format = if tensor.format.is_quantised() { self.expansion() } else { tensor.format };
        let done = tensor.bytes.len() / (heads * part) * (heads * rows.len());
        let values = tensor.to_f32();
        let mut taken = Vec::with_capacity(heads * rows.len() * inner);
        for head in values.chunks_exact(part * inner) {
            let head = &head[rows.start * inner..rows.end * inner];
            match turn {
                true => taken.extend((0..inner).flat_map(|i| head[i..].iter().step_by(inner))),
                false => taken.extend(head),
            }
        }
        let shape = if turn { [heads, inner, rows.len()] } else { [heads, rows.len(), inner] };
        let bytes = format::encode(format, &taken);
        let weight = self.upload(name, HostTensor::new(name.to_string(), shape, format, bytes)?)?;
        self.finished(&[found], done as u64);
        Ok(weight)
    }

    /// These rows of a matrix `[out, inner]`, one after another, as a matrix.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn matrix_of_rows(&mut self, name: &str, out: usize, inner: usize, rows: &[Range<usize>]) -> Result<Weight> {
        let (found, mut tensor) = self.read(name, &[out, inner])?;
        let each = tensor.bytes.len() / out;
        if tensor.format.bytes(inner) != Some(each) {
            return Err(self.fail(name, format!("is {}, whose rows do not lie by themselves", tensor.format)));
        }
        let bytes: Vec<u8> = rows.iter().flat_map(|r| &tensor.bytes[r.start * each..r.end * each]).copied().collect();
        let count: usize = rows.iter().map(Range::len).sum();
        let done = bytes.len() as u64;
        (tensor.shape, tensor.bytes) = ([count, inner].into(), bytes.into()); // The order of its inputs stays.
        let weight = self.upload(name, tensor)?;
        self.finished(&[found], done);
        Ok(weight)
    }

    /// A matrix `[rows, len]` as one vector, kept as f32: biases of experts.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn rows(&mut self, name: &str, rows: usize, len: usize) -> Result<Weight> {
        let (found, mut tensor) = self.read(name, &[rows, len])?;
        tensor.shape = [rows * len].into();
        let done = tensor.bytes.len() as u64;
        let weight = self.upload(name, tensor)?;
        self.finished(&[found], done);
        Ok(weight)
    }

    /// A matrix `[out, inner]` that is computed, kept as f32.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn constant_matrix(&mut self, name: &str, out: usize, inner: usize, values: &[f32]) -> Result<Weight> {
        let tensor = HostTensor::from_f32(name.to_string(), [out, inner], values)?;
        self.upload(name, tensor)
    }

    /// A vector that is computed, not read.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn constant(&mut self, name: &str, values: &[f32]) -> Result<Weight> {
        let tensor = HostTensor::from_f32(name.to_string(), [values.len()], values)?;
        Ok(self.backend.upload(tensor, Format::F32)?)
    }

    /// Parameters uploaded so far, and the bytes they take on the device.
    pub fn uploaded(&self) -> (u64, u64) {
        (self.parameters, self.weight_bytes)
    }

    /// What the start-up log should say of the way: what was quantised, what the device lacks and so was expanded.
    pub fn notes(&self) -> Vec<String> {
        let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let expanded = self.expanded.iter().map(|((from, to), (before, after))| {
            let device = &self.backend.info().name;
            let (before, after) = (mebibytes(*before), mebibytes(*after));
            format!("{device} lacks weights in {from}: {before} of them were expanded to {after} of {to}")
        });
        let quantised = matches!(self.dtype, WeightDtype::Q8 | WeightDtype::Q4 | WeightDtype::Fp8).then(|| {
            let (before, after) = (mebibytes(self.weights.bytes()), mebibytes(self.weight_bytes));
            format!("weights were quantised to {}: {before} in the files, {after} on the device", self.dtype.name())
        });
        expanded.chain(quantised).collect()
    }

    /// An error about a tensor: the file it is in, its name, the reason.
    pub fn fail(&self, name: &str, reason: impl std::fmt::Display) -> Error {
        Error::file(self.weights.file(name), format!("tensor {name}: {reason}"))
    }

    /// The tensor and the name it was found under, its shape checked.
    fn read(&self, name: &str, shape: &[usize]) -> Result<(String, HostTensor<'a>)> {
        let found = self.find(name).ok_or_else(|| self.fail(name, "is missing"))?;
        let mut tensor = self.weights.tensor(&found, shape)?.ok_or_else(|| self.fail(name, "is missing"))?;
        // Some vectors are stored as a matrix of one row.
        if tensor.shape.dims() == [&[1], shape].concat() || [&[1], tensor.shape.dims()].concat() == shape {
            tensor.shape = shape.into();
        }
        if tensor.shape.dims() != shape {
            let reason = format!("has shape {}, the configuration says {}", tensor.shape, Shape::new(shape));
            return Err(self.fail(&found, reason));
        }
        Ok((found.into_owned(), tensor))
    }

    /// `name` is the one that was asked for: the file may call the tensor otherwise.
    fn upload(&mut self, name: &str, tensor: HostTensor<'_>) -> Result<Weight> {
        let (tensor, format) = match tensor.format.is_quantised() {
            true => self.kept(tensor)?,
            false if tensor.shape.rank() == 1 => (tensor, Format::F32),
            false => {
                let format = self.dtype.format(name, tensor.format, &tensor.shape);
                (tensor, format)
            }
        };
        let elements = tensor.shape.elements() as u64;
        let weight = self.backend.upload(tensor, format)?;
        self.parameters += elements;
        self.weight_bytes += weight.bytes();
        Ok(weight)
    }

    /// Blocks as they are, checked; or expanded, where the device lacks their format.
    fn kept<'t>(&mut self, tensor: HostTensor<'t>) -> Result<(HostTensor<'t>, Format)> {
        let format = tensor.format;
        // Blocks are decoded exactly under exact precision; expanding them would only cost memory.
        if !matches!(self.dtype, WeightDtype::Auto | WeightDtype::F32) {
            let wished = self.dtype.name();
            let reason = format!("is {format}; {wished} weights cannot be made of it: use dtype auto or f32");
            return Err(self.fail(&tensor.name, reason));
        }
        if let Some(block) = broken(&tensor) {
            return Err(self.fail(&tensor.name, format!("block {block} has a scale that is no finite number")));
        }
        if self.backend.accepts(&tensor) {
            return Ok((tensor, format));
        }
        let plain = self.expansion();
        let (name, shape, before) = (tensor.name.to_string(), tensor.shape, tensor.bytes.len() as u64);
        let expanded = HostTensor::new(name, shape, plain, format::encode(plain, &tensor.to_f32()))?;
        let all = self.expanded.entry((format.name(), plain.name())).or_default();
        *all = (all.0 + before, all.1 + expanded.bytes.len() as u64);
        Ok((expanded, plain))
    }

    /// What blocks become where they cannot stay.
    fn expansion(&self) -> Format {
        if self.dtype == WeightDtype::F32 { Format::F32 } else { Format::Bf16 }
    }

    fn finished(&mut self, names: &[String], bytes: u64) {
        names.iter().for_each(|name| self.weights.release(name));
        self.done_bytes += bytes;
        (self.progress)(self.done_bytes, self.weights.bytes().max(self.done_bytes));
    }

    /// The name under which the checkpoint has the tensor: base models are saved without the leading `model.`, wrapped
    /// ones with more before it.
    fn find<'n>(&self, name: &'n str) -> Option<Cow<'n, str>> {
        let inner = name.strip_prefix("model.");
        let candidates = [
            Some(Cow::Borrowed(name)),
            inner.map(Cow::Borrowed),
            Some(Cow::Owned(format!("language_model.{name}"))),
            inner.map(|inner| Cow::Owned(format!("model.language_model.{inner}"))),
        ];
        candidates.into_iter().flatten().find(|name| self.weights.contains(name))
    }
}

/// The first block whose scale or minimum is no finite number.
fn broken(tensor: &HostTensor<'_>) -> Option<usize> {
    let (scales, len) = (format::scales(tensor.format), tensor.format.block_bytes());
    let wrong = |block: &[u8]| scales.iter().any(|scale| !scale.read(block).is_finite());
    tensor
        .bytes
        .par_chunks(len << 12)
        .enumerate()
        .find_map_first(|(i, blocks)| blocks.chunks_exact(len).position(wrong).map(|block| (i << 12) + block))
}
