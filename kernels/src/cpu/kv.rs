//! Owns the K/V cache: one block of memory whose pages appear when first written, and the layout that attention reads.
//! Knows no sequence and no arithmetic.
//!
//! ```text
//! cache    [block][layer](keys [kv_head], values [kv_head])
//! keys     [dim / 2] lines: lane = token of the block, pair = two neighbouring dimensions
//! values   [8 token pairs][v_dim / 16] lines: lane = dimension, pair = two neighbouring tokens
//! line     16 lanes x 2; bf16: 16 words of (even, odd); f32: 16 even, then 16 odd
//! ```
//! Sixteen keys are sixteen lanes, so a score is one chain over the dimensions whatever the query's company. Dimensions
//! are padded with zeros to whole lines. A cache of f32 is exact; bf16 rounds to nearest even (2^-9 relative). bf16 rather
//! than f16: it expands to f32 with one shift on every processor, cannot overflow, and is what most checkpoints compute in.

use half::bf16;

use super::buffer::Buffer;
use super::lanes::{LANES, Lanes};
use crate::{DType, Error, KvSpec, Result};

/// Tokens of a block, and lanes of a key line.
pub(crate) const BLOCK_TOKENS: usize = LANES;
/// Values of a line.
pub(crate) const LINE: usize = 2 * LANES;

/// An element type of the cache.
pub(crate) trait Cell: Copy + Send + Sync + 'static {
    fn from_f32(x: f32) -> Self;
    /// Place in a line of lane `lane`, even or odd half of the pair.
    fn place(lane: usize, odd: usize) -> usize;
    /// The even and the odd values of a line.
    ///
    /// # Safety
    /// A whole line at `p`.
    unsafe fn line<L: Lanes>(p: *const Self) -> (L, L);
}

impl Cell for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn place(lane: usize, odd: usize) -> usize {
        odd * LANES + lane
    }
    #[inline(always)]
    unsafe fn line<L: Lanes>(p: *const Self) -> (L, L) {
        // SAFETY: the caller's.
        unsafe { (L::load(p), L::load(p.add(LANES))) }
    }
}

impl Cell for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn place(lane: usize, odd: usize) -> usize {
        lane * 2 + odd
    }
    #[inline(always)]
    unsafe fn line<L: Lanes>(p: *const Self) -> (L, L) {
        // SAFETY: the caller's.
        unsafe { L::load_bf16_pairs(p.cast()) }
    }
}

/// The cache of all layers.
pub(crate) struct KvCache {
    data: Buffer,
    layers: Vec<Layer>,
    block_bytes: usize,
    pub(crate) blocks: usize,
    pub(crate) dtype: DType,
}

/// Where one layer lies in a block.
#[derive(Clone, Copy, Debug)]
struct Layer {
    offset: usize,
    kv_heads: usize,
    dim: usize,
    v_dim: usize,
}

impl KvCache {
    /// Reserves addresses for `blocks` blocks; touches none of them.
    ///
    /// # Errors
    /// A block size or element type that the kernels do not know; no such memory.
    pub(crate) fn reserve(spec: &KvSpec, blocks: usize) -> Result<Self> {
        let refused = |what: String| Err(Error::Unsupported { device: "cpu", what });
        if spec.block_tokens != BLOCK_TOKENS {
            return refused(format!("K/V blocks of {} tokens, only of {BLOCK_TOKENS}", spec.block_tokens));
        }
        if !matches!(spec.dtype, DType::F32 | DType::Bf16) {
            return refused(format!("a K/V cache of {}, only of f32 and bf16", spec.dtype));
        }
        let (mut layers, mut block_bytes) = (vec![], 0);
        for l in &spec.layers {
            let layer = Layer { offset: block_bytes, kv_heads: l.kv_heads, dim: l.k_dim, v_dim: l.v_dim };
            block_bytes += l.kv_heads * (key_values(l.k_dim) + value_values(l.v_dim)) * spec.dtype.bytes();
            layers.push(layer);
        }
        let bytes = block_bytes.checked_mul(blocks);
        let data = bytes.and_then(Buffer::try_zeroed).ok_or_else(|| Error::OutOfMemory {
            what: format!("a K/V cache of {blocks} blocks"),
            needed: bytes.map_or(u64::MAX, |b| b as u64),
            free: super::machine::available_bytes(),
        })?;
        Ok(Self { data, layers, block_bytes, blocks, dtype: spec.dtype })
    }

    /// True when layer `layer` has this geometry.
    pub(crate) fn fits(&self, layer: usize, kv_heads: usize, dim: usize, v_dim: usize) -> bool {
        self.layers.get(layer).is_some_and(|l| l.kv_heads == kv_heads && l.dim == dim && l.v_dim == v_dim)
    }

    /// Fills the memory with NaN: what was never written must never count.
    #[cfg(test)]
    pub(crate) fn poison(&mut self) {
        // SAFETY: the whole buffer.
        unsafe { self.data.as_mut_ptr().write_bytes(0xff, self.data.len()) };
    }

    /// One layer, to write and to read. Whoever writes through it holds the cache alone.
    pub(crate) fn layer(&mut self, layer: usize) -> LayerCells {
        let l = self.layers[layer];
        // SAFETY: the layer lies inside the first block, and so inside the buffer.
        let base = unsafe { self.data.as_mut_ptr().add(l.offset) };
        LayerCells { base, block_bytes: self.block_bytes, kv_heads: l.kv_heads, dim: l.dim, v_dim: l.v_dim }
    }
}

/// Values of one head's keys in a block.
fn key_values(dim: usize) -> usize {
    dim.div_ceil(2) * LINE
}

/// Values of one head's values in a block.
fn value_values(v_dim: usize) -> usize {
    BLOCK_TOKENS / 2 * v_dim.div_ceil(LANES) * LINE
}

/// One layer of the cache, as threads share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerCells {
    base: *mut u8,
    block_bytes: usize,
    kv_heads: usize,
    dim: usize,
    v_dim: usize,
}

// SAFETY: only a pointer; every use is unsafe, and says why threads write apart.
unsafe impl Send for LayerCells {}
// SAFETY: as above.
unsafe impl Sync for LayerCells {}

impl LayerCells {
    /// The key lines of `head` in `block`.
    ///
    /// # Safety
    /// The block is below the cache's count, and `C` is its element type.
    #[inline(always)]
    pub(crate) unsafe fn keys<C: Cell>(&self, block: usize, head: usize) -> *mut C {
        // SAFETY: the caller's.
        unsafe { self.base.add(block * self.block_bytes).cast::<C>().add(head * key_values(self.dim)) }
    }

    /// The value lines of `head` in `block`.
    ///
    /// # Safety
    /// As for [`Self::keys`].
    #[inline(always)]
    pub(crate) unsafe fn values<C: Cell>(&self, block: usize, head: usize) -> *mut C {
        let before = self.kv_heads * key_values(self.dim) + head * value_values(self.v_dim);
        // SAFETY: the caller's.
        unsafe { self.base.add(block * self.block_bytes).cast::<C>().add(before) }
    }

    /// Stores one token: `k [kv_heads, dim]`, `v [kv_heads, v_dim]`.
    ///
    /// # Safety
    /// As for [`Self::keys`], and no other thread reads or writes this slot.
    pub(crate) unsafe fn store<C: Cell>(&self, slot: usize, k: &[f32], v: &[f32]) {
        let (block, token) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
        let columns = self.v_dim.div_ceil(LANES);
        for (head, (k, v)) in k.chunks_exact(self.dim).zip(v.chunks_exact(self.v_dim)).enumerate() {
            // SAFETY: dimensions below `dim` and `v_dim` lie inside the head's lines.
            unsafe {
                let (keys, values) = (self.keys::<C>(block, head), self.values::<C>(block, head));
                for (d, x) in k.iter().enumerate() {
                    keys.add(d / 2 * LINE + C::place(token, d % 2)).write(C::from_f32(*x));
                }
                for (d, x) in v.iter().enumerate() {
                    let line = token / 2 * columns + d / LANES;
                    values.add(line * LINE + C::place(d % LANES, token % 2)).write(C::from_f32(*x));
                }
            }
        }
    }
}
