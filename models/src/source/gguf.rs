//! Owns GGUF files: metadata as plain values and tensors as borrowed slices of the mapping, under the names that
//! Hugging Face checkpoints use. Metadata is read by candle-core's reader, after [`walk`] has checked every length; knows no
//! model family.

mod names;
mod walk;

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use dualgauge_kernels::{Format, HostTensor, Shape};
use serde_json::{Map, json};

use super::mapping::Mapping;
use super::metadata::{Metadata, MetadataValue};
use crate::{Error, Result};

/// An open GGUF file.
pub struct Gguf {
    map: Mapping,
    tensors: HashMap<String, Entry>,
    metadata: Metadata,
    architecture: String,
}

struct Entry {
    shape: Shape,
    format: Format,
    range: Range<usize>,
}

/// Bytes of a header that state how many tensors there are.
const TENSOR_COUNT: Range<usize> = 8..16;

impl Gguf {
    /// Maps the file and reads its metadata and tensor table.
    ///
    /// # Errors
    /// When the file cannot be opened or is broken; when it holds a tensor format that no kernel reads.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapping::open(path)?;
        let name = map.name().to_string();
        let fail = |reason: String| Error::file(&name, reason);
        let header = walk::walk(map.bytes()).map_err(fail)?;
        // The table of tensors was read by the walk: the reader is shown the metadata, and a count of none.
        let mut start = map.bytes()[..header.metadata].to_vec();
        start[TENSOR_COUNT].fill(0);
        let content = Content::read(&mut Cursor::new(&start)).map_err(|e| fail(format!("is no GGUF file: {e}")))?;
        let mut tensors = HashMap::with_capacity(header.tensors.len());
        for (tensor, walk::Info { shape, format, offset }) in header.tensors {
            let bytes = format.bytes(shape.last()).and(format.bytes(shape.elements()));
            let bytes =
                bytes.ok_or_else(|| fail(format!("tensor {tensor}: shape {shape} is no whole {format} blocks")))?;
            let range = usize::try_from(offset)
                .ok()
                .and_then(|offset| header.data.checked_add(offset))
                .and_then(|from| Some(from..from.checked_add(bytes)?))
                .filter(|range| range.end <= map.bytes().len())
                .ok_or_else(|| fail(format!("ends before tensor {tensor} does; the download may be incomplete")))?;
            tensors.insert(tensor, Entry { shape, format, range });
        }
        apart(&tensors).map_err(fail)?;
        let values = content.metadata.into_iter().filter_map(|(key, v)| Some((key, plain(v)?))).collect();
        let metadata = Metadata::new(&name, values);
        let architecture = metadata.text("general.architecture")?.map(str::to_string);
        let architecture = architecture.ok_or_else(|| fail("general.architecture is missing".into()))?;
        Ok(Self { map, tensors, metadata, architecture })
    }

    /// What the file says beside its tensors: the tokenizer is rebuilt from this.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// `general.architecture`: `llama`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The metadata as the keys and values of a `config.json`, for [`crate::Config`] to check.
    ///
    /// # Errors
    /// When a key holds a value of another kind.
    pub(crate) fn config(&self) -> Result<Map<String, serde_json::Value>> {
        let mut config = names::config(&self.metadata, &self.architecture)?;
        config.insert("tie_word_embeddings".into(), (!self.tensors.contains_key("output.weight")).into());
        let biases = [
            ("attention_bias", &["blk.0.attn_q.bias", "blk.0.attn_qkv.bias"][..]),
            ("use_qkv_bias", &["blk.0.attn_q.bias"]),
            ("use_bias", &["blk.0.attn_q.bias"]),
            ("attention_out_bias", &["blk.0.attn_output.bias"]),
            ("mlp_bias", &["blk.0.ffn_up.bias"]),
        ];
        for (key, tensors) in biases {
            config.insert(key.into(), tensors.iter().any(|tensor| self.tensors.contains_key(*tensor)).into());
        }
        if let Some(factors) = self.vector("rope_freqs.weight")? {
            config.insert("rope_factors".into(), factors.into());
        }
        // Of LongRoPE models: divisors for short and for long sequences.
        if let (Some(short), Some(long)) =
            (self.vector("rope_factors_short.weight")?, self.vector("rope_factors_long.weight")?)
        {
            let own = |key: &str| format!("{}.rope.scaling.{key}", self.architecture);
            config.insert(
                "rope_scaling".into(),
                json!({
                    "rope_type": "longrope", "short_factor": short, "long_factor": long,
                    "original_max_position_embeddings": self.metadata.int(&own("original_context_length"))?,
                    "attention_factor": self.metadata.float(&own("attn_factor"))?,
                }),
            );
        }
        Ok(config)
    }

    /// The key of this file behind a key of [`Self::config`], for errors.
    pub(crate) fn key_name(architecture: &str, key: &str) -> String {
        names::key(architecture, key)
    }

    pub(crate) fn name(&self) -> &str {
        self.map.name()
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.range.len() as u64).sum()
    }

    /// The tensor with this Hugging Face name, borrowed from the mapping.
    pub(crate) fn tensor(&self, name: &str) -> Option<HostTensor<'_>> {
        let (name, shape, format, range) = self.entry(name)?;
        let tensor = HostTensor::new(name, shape, format, &self.map.bytes()[range]);
        Some(tensor.expect("lengths were checked at open: this is a bug"))
    }

    pub(crate) fn release(&self, name: &str) {
        if let Some((_, _, _, range)) = self.entry(name) {
            self.map.release(range);
        }
    }

    /// The tensor of this name, or the part of a stack of experts that it is.
    fn entry(&self, name: &str) -> Option<(String, Shape, Format, Range<usize>)> {
        if let Some((stack, expert)) = names::expert(name) {
            let Entry { shape, format, range } = self.tensors.get(&stack)?;
            let [experts, out, inner] = *shape.dims() else { return None };
            let bytes = range.len() / experts;
            let from = range.start + expert * bytes;
            let name = format!("{stack}[{expert}]");
            return (expert < experts).then(|| (name, Shape::new(&[out, inner]), *format, from..from + bytes));
        }
        let mut names = names::tensor(name).into_iter();
        let (name, entry) = names.find_map(|name| self.tensors.get(&name).map(|entry| (name, entry)))?;
        Some((name, entry.shape, entry.format, entry.range.clone()))
    }

    /// The numbers of a f32 vector, if the file has it: factors of frequencies, which Llama 3 files keep, too.
    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        if entry.format != Format::F32 || entry.shape.rank() != 1 {
            return Err(Error::file(self.name(), format!("tensor {name} is not a f32 vector")));
        }
        let bytes = self.map.bytes()[entry.range.clone()].chunks_exact(4);
        Ok(Some(bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }
}

/// No two tensors share bytes.
fn apart(tensors: &HashMap<String, Entry>) -> Result<(), String> {
    let mut order: Vec<(&String, &Entry)> = tensors.iter().collect();
    order.sort_by_key(|(_, e)| (e.range.start, e.range.end));
    match order.windows(2).find(|pair| pair[1].1.range.start < pair[0].1.range.end) {
        Some(pair) => Err(format!("tensors {} and {} overlap", pair[0].0, pair[1].0)),
        None => Ok(()),
    }
}

/// `None` for an empty list, whose type is lost, and so as good as absent.
fn plain(value: Value) -> Option<MetadataValue> {
    Some(match value {
        Value::U8(v) => MetadataValue::Int(v.into()),
        Value::I8(v) => MetadataValue::Int(v.into()),
        Value::U16(v) => MetadataValue::Int(v.into()),
        Value::I16(v) => MetadataValue::Int(v.into()),
        Value::U32(v) => MetadataValue::Int(v.into()),
        Value::I32(v) => MetadataValue::Int(v.into()),
        Value::U64(v) => MetadataValue::Int(i64::try_from(v).unwrap_or(i64::MAX)),
        Value::I64(v) => MetadataValue::Int(v),
        // A f32 is meant as its shortest decimal: 1e-5 is not 9.999999747378752e-6.
        Value::F32(v) => MetadataValue::Float(v.to_string().parse().unwrap_or(v.into())),
        Value::F64(v) => MetadataValue::Float(v),
        Value::Bool(v) => MetadataValue::Bool(v),
        Value::String(v) => MetadataValue::Text(v),
        Value::Array(list) => match list.first()? {
            Value::String(_) => MetadataValue::Texts(
                list.into_iter()
                    .filter_map(|v| match v {
                        Value::String(v) => Some(v),
                        _ => None,
                    })
                    .collect(),
            ),
            Value::F32(_) | Value::F64(_) => MetadataValue::Floats(
                list.iter().filter_map(|v| v.to_f32().ok().or_else(|| v.to_f64().ok().map(|v| v as f32))).collect(),
            ),
            _ => MetadataValue::Ints(
                list.into_iter()
                    .filter_map(|v| match plain(v)? {
                        MetadataValue::Int(v) => Some(v),
                        MetadataValue::Bool(v) => Some(v.into()),
                        _ => None,
                    })
                    .collect(),
            ),
        },
    })
}
