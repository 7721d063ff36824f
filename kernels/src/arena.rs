//! Owns where values lie: liveness to offsets, so that the peak is known before the K/V cache is sized. Knows no
//! device; reshapes share the bytes of what they view.

use crate::{Op, Program, Value};

/// Offsets of every value of one program in one block of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Byte offset of each value; a view has its source's.
    pub offsets: Vec<usize>,
    pub peak_bytes: usize,
}

impl Arena {
    /// Cache lines apart, and aligned for any vector load.
    pub const ALIGN: usize = 64;

    /// First fit over the values that are alive together, in order of size (largest first, ties by age).
    pub fn plan(program: &Program) -> Self {
        Self::plan_at(program, &(0..program.nodes.len()).collect::<Vec<_>>())
    }

    /// As [`Self::plan`], for a device that runs some nodes as one: node `i` runs at `time[i]`, which never descends.
    /// Values that are made or read at one time lie apart.
    pub fn plan_at(program: &Program, time: &[usize]) -> Self {
        let root = roots(program);
        let count = program.nodes.len();
        let mut last_use = time.to_vec();
        for (i, node) in program.nodes.iter().enumerate() {
            for v in node.op.inputs() {
                last_use[root[v.index()]] = last_use[root[v.index()]].max(time[i]);
            }
        }
        let out = program.outputs;
        for v in [Some(out.logits), Some(out.argmax), out.top, Some(out.log_sum_exp)].into_iter().flatten() {
            last_use[root[v.index()]] = usize::MAX;
        }
        let bytes = |i: usize| {
            let node = &program.nodes[i];
            (node.shape.elements() * node.dtype.bytes()).next_multiple_of(Self::ALIGN)
        };
        let mut order: Vec<usize> = (0..count).filter(|i| root[*i] == *i).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(bytes(*i)), *i));
        let mut placed: Vec<usize> = vec![];
        let mut offsets = vec![0; count];
        let mut peak_bytes = 0;
        for i in order {
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|j| time[**j] <= last_use[i] && time[i] <= last_use[**j])
                .map(|j| (offsets[*j], offsets[*j] + bytes(*j)))
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (start, end) in taken {
                if at + bytes(i) <= start {
                    break;
                }
                at = at.max(end);
            }
            offsets[i] = at;
            peak_bytes = peak_bytes.max(at + bytes(i));
            placed.push(i);
        }
        for i in 0..count {
            offsets[i] = offsets[root[i]];
        }
        Self { offsets, peak_bytes }
    }

    pub fn offset(&self, v: Value) -> usize {
        self.offsets[v.index()]
    }
}

/// The value whose bytes each value is: itself, or what a chain of reshapes views.
fn roots(program: &Program) -> Vec<usize> {
    let mut root: Vec<usize> = (0..program.nodes.len()).collect();
    for (i, node) in program.nodes.iter().enumerate() {
        if let Op::Reshape { x, .. } = node.op {
            root[i] = root[x.index()];
        }
    }
    root
}
