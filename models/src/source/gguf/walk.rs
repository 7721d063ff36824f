//! Owns the first look at a GGUF file: walks its header once, allocating nothing from a number the file states, and
//! refuses what a reader would choke on. After it, candle-core's reader can be trusted with the bytes.

use std::collections::{HashMap, HashSet};

use dualgauge_kernels::{Format, Shape};

/// Entries of all lists together. A vocabulary of 256,000 with merges has about 1.3 million.
const MAX_LIST_ENTRIES: u64 = 8 << 20;
const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_HEADER_BYTES: usize = 512 << 20;
const MAX_ENTRIES: u64 = 1 << 20;

/// A tensor as the header states it, outermost dimension first.
pub(super) struct Info {
    pub(super) shape: Shape,
    pub(super) format: Format,
    /// From [`Header::data`] on.
    pub(super) offset: u64,
}

/// What a header holds.
pub(super) struct Header {
    pub(super) tensors: HashMap<String, Info>,
    /// The bytes up to the table of tensors.
    pub(super) metadata: usize,
    /// Where the tensors' own bytes begin.
    pub(super) data: usize,
}

/// # Errors
/// One line saying what is wrong.
pub(super) fn walk(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { bytes: &bytes[..bytes.len().min(MAX_HEADER_BYTES)], at: 0, listed: 0 };
    if bytes.get(..4) != Some(b"GGUF") {
        return Err("is no GGUF file: it does not start with the letters GGUF".into());
    }
    cursor.at = 4;
    match cursor.u32()? {
        2 | 3 => {}
        v if (1..=3).contains(&v.swap_bytes()) => {
            return Err("is a big-endian GGUF file; only little-endian files are read".into());
        }
        v => return Err(format!("is GGUF version {v}; versions 2 and 3 are read")),
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    if tensors > MAX_ENTRIES || keys > MAX_ENTRIES {
        return Err(format!("states {tensors} tensors and {keys} metadata keys; at most {MAX_ENTRIES} are read"));
    }
    let mut seen = HashSet::new();
    let mut alignment = 32;
    for _ in 0..keys {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        if key == b"general.alignment" {
            let stated = cursor.clone().u32().ok().filter(|v| kind == 4 && v.is_power_of_two() && *v <= 1 << 16);
            alignment = stated.ok_or("general.alignment is not a power of two up to 65536")?;
        }
        cursor.value(kind).map_err(|e| format!("{}: {e}", String::from_utf8_lossy(key)))?;
        if !seen.insert(key) {
            return Err(format!("states {} twice", String::from_utf8_lossy(key)));
        }
    }
    let metadata = cursor.at;
    let mut infos = HashMap::new();
    for _ in 0..tensors {
        let (name, info) = cursor.tensor(alignment)?;
        if infos.contains_key(&name) {
            return Err(format!("states tensor {name} twice"));
        }
        infos.insert(name, info);
    }
    Ok(Header { tensors: infos, metadata, data: cursor.at.next_multiple_of(alignment as usize) })
}

#[derive(Clone)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// List entries passed so far.
    listed: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|n| self.at.checked_add(n));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or("the header runs beyond the end of the file; the download may be incomplete")?;
        self.at += taken.len();
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes: this is a bug")))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes: this is a bug")))
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        match self.u64()? {
            len if len > MAX_STRING_BYTES => {
                Err(format!("a string of {len} bytes; at most {MAX_STRING_BYTES} are read"))
            }
            len => self.take(len),
        }
    }

    /// Steps over one value of type `kind`.
    fn value(&mut self, kind: u32) -> Result<(), String> {
        match kind {
            7 => match self.take(1)?[0] {
                0 | 1 => Ok(()),
                other => Err(format!("a boolean of value {other}")),
            },
            8 => self.string().map(drop),
            9 => self.list(),
            _ => self.take(scalar_bytes(kind)?).map(drop),
        }
    }

    fn list(&mut self) -> Result<(), String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        self.listed = self.listed.saturating_add(count);
        if self.listed > MAX_LIST_ENTRIES {
            return Err(format!("lists of more than {MAX_LIST_ENTRIES} entries in all"));
        }
        match kind {
            9 => Err("a list of lists".into()),
            7 | 8 => (0..count).try_for_each(|_| self.value(kind)),
            _ => self.take(count * scalar_bytes(kind)?).map(drop),
        }
    }

    fn tensor(&mut self, alignment: u32) -> Result<(String, Info), String> {
        let name = String::from_utf8(self.string()?.to_vec()).map_err(|_| "a tensor's name is not UTF-8")?;
        if name.is_empty() || name.len() > 256 || name.chars().any(|c| c.is_control()) {
            return Err("a tensor's name is empty, longer than 256 bytes or has control characters".into());
        }
        let fail = |what: String| format!("tensor {name}: {what}");
        let rank = self.u32()?;
        if rank == 0 || rank > 4 {
            return Err(fail(format!("{rank} dimensions")));
        }
        let (mut elements, mut dims) = (1u64, vec![]);
        for _ in 0..rank {
            let dim = self.u64()?;
            let product = elements.checked_mul(dim).filter(|n| *n > 0 && *n < 1 << 48);
            elements = product.ok_or_else(|| fail(format!("a dimension of {dim} makes no sense")))?;
            dims.insert(0, dim as usize);
        }
        let kind = self.u32()?;
        let format = format(kind).ok_or_else(|| {
            let known: Vec<&str> = (0..64).filter_map(format).map(Format::name).collect();
            let known = known.join(", ");
            fail(format!("format {} is not supported; these are: {known}", format_name(kind)))
        })?;
        match self.u64()? {
            offset if offset % u64::from(alignment) != 0 => Err(fail(format!("offset {offset} is not aligned"))),
            offset => Ok((name, Info { shape: Shape::new(&dims), format, offset })),
        }
    }
}

fn scalar_bytes(kind: u32) -> Result<u64, String> {
    match kind {
        0 | 1 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(format!("a value of unknown type {kind}")),
    }
}

fn format(kind: u32) -> Option<Format> {
    Some(match kind {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        20 => Format::Iq4Nl,
        23 => Format::Iq4Xs,
        30 => Format::Bf16,
        39 => Format::Mxfp4,
        _ => return None,
    })
}

/// ggml's names of tensor types, for the message that refuses them.
fn format_name(kind: u32) -> String {
    let name = match kind {
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        21 => "iq3_s",
        22 => "iq2_s",
        24..=27 => "an integer type",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        _ => return format!("number {kind}"),
    };
    name.into()
}
