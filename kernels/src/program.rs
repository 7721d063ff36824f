//! Owns the recorded program: a list of operations with concrete shapes. Can check itself and print itself; what it
//! costs and where its values lie is arithmetic on it.

use std::fmt::Write as _;

use crate::{Arena, BatchShape, Cost, DType, Error, Op, Result, Shape, Value};

/// One operation and its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    pub shape: Shape,
    pub dtype: DType,
    /// Where in the model: `layers.7.attn`; empty outside of any scope.
    pub path: String,
}

/// What a step returns beside the largest logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tail {
    /// Best candidates a row; 0 for none.
    pub top_k: usize,
    /// The whole row of logits.
    pub logits: bool,
    /// Rows carry token masks (constrained decoding).
    pub masked: bool,
}

/// The values of a program that go back to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// `[rows, vocab]` f32, after masks.
    pub logits: Value,
    pub argmax: Value,
    pub top: Option<Value>,
    pub log_sum_exp: Value,
}

/// A recorded program: operations in an order in which every value is made before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub shape: BatchShape,
    pub nodes: Vec<Node>,
    pub tail: Tail,
    pub outputs: Outputs,
    pub block_tokens: usize,
}

impl Program {
    pub fn node(&self, v: Value) -> &Node {
        &self.nodes[v.index()]
    }

    /// Size of the vocabulary: last dimension of the logits.
    pub fn vocab(&self) -> usize {
        self.node(self.outputs.logits).shape.last()
    }

    /// Checks what every back end relies on: order, element counts, cache layers used once, outputs of the right type.
    ///
    /// # Errors
    /// [`Error::Record`] naming the node's path.
    pub fn verify(&self) -> Result<()> {
        let mut layers = vec![];
        for (i, node) in self.nodes.iter().enumerate() {
            let fail = |message: String| {
                let path = if node.path.is_empty() { format!("%{i}") } else { node.path.clone() };
                Err(Error::Record { path, message: format!("{}: {message}", node.op.name()) })
            };
            if let Some(v) = node.op.inputs().iter().find(|v| v.index() >= i) {
                return fail(format!("reads %{} before it is made", v.0));
            }
            if node.shape.elements() == 0 {
                return fail(format!("has no elements: {}", node.shape));
            }
            match node.op {
                Op::Reshape { x, .. } if self.node(x).shape.elements() != node.shape.elements() => {
                    return fail("changes the number of elements".into());
                }
                Op::Attention { spec, .. } if layers.contains(&spec.layer) => {
                    return fail(format!("uses cache layer {} a second time", spec.layer));
                }
                Op::Attention { spec, .. } => layers.push(spec.layer),
                _ => {}
            }
        }
        let Outputs { logits, argmax, top, log_sum_exp } = self.outputs;
        let rows = self.shape.rows;
        let kinds = [
            (Some(logits), DType::F32, "logits"),
            (Some(argmax), DType::U32, "argmax"),
            (top, DType::Pair, "top"),
            (Some(log_sum_exp), DType::F32, "log_sum_exp"),
        ];
        for (value, dtype, name) in kinds {
            if let Some(v) = value
                && self.nodes.get(v.index()).is_none_or(|n| n.dtype != dtype || n.shape.first() != rows)
            {
                let message = format!("is not a {dtype} value of {rows} rows");
                return Err(Error::Record { path: name.into(), message });
            }
        }
        Ok(())
    }

    /// Arithmetic and traffic of the whole step.
    pub fn cost(&self) -> Cost {
        self.nodes.iter().map(|n| self.node_cost(n)).sum()
    }

    pub fn node_cost(&self, node: &Node) -> Cost {
        let inputs: Vec<Shape> = node.op.inputs().iter().map(|v| self.node(*v).shape).collect();
        node.op.cost(node.shape, &inputs, &self.shape, self.block_tokens)
    }

    /// Where every value lies, and the peak, before anything runs.
    pub fn arena(&self) -> Arena {
        Arena::plan(self)
    }

    /// The program as a person reads it: one line a node, with shapes, weights and path.
    pub fn dump(&self) -> String {
        let s = self.shape;
        let mut out = format!(
            "program tokens={} seqs={} query={} blocks={} rows={} nodes={} arena={} bytes\n",
            s.tokens,
            s.seqs,
            s.query,
            s.blocks,
            s.rows,
            self.nodes.len(),
            self.arena().peak_bytes
        );
        for (i, node) in self.nodes.iter().enumerate() {
            let inputs: Vec<String> = node.op.inputs().iter().map(|v| format!("%{}", v.0)).collect();
            let weights: Vec<String> =
                node.op.weights().iter().map(|w| format!("w{}{} {}", w.id.0, w.shape, w.format)).collect();
            let all = [inputs, weights].concat().join(", ");
            let result = format!("{} {}", node.shape, node.dtype);
            let _ = writeln!(out, "  %{i:<4} {:<12} {all:<44} -> {result:<22} {}", node.op.name(), node.path);
        }
        let o = self.outputs;
        let top = o.top.map_or(String::new(), |v| format!(" top=%{}", v.0));
        let _ = writeln!(
            out,
            "  return argmax=%{} log_sum_exp=%{}{top} logits=%{}",
            o.argmax.0, o.log_sum_exp.0, o.logits.0
        );
        out
    }
}
