//! Owns the recorded program: a list of operations with concrete shapes. Can check itself and print itself; what it
//! costs and where its values lie is arithmetic on it.

use std::fmt::Write as _;

use crate::{Arena, Batch, BatchShape, Cost, DType, Error, KvSpec, Op, Recorder, Result, Shape, StateLayer, Value};

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

    /// Checks what every back end relies on: order, the recorder's shape rules, cache layers used once, outputs of the
    /// right kind. A rewritten program passes the same rules as a recorded one.
    ///
    /// # Errors
    /// [`Error::Record`] naming the node's path.
    pub fn verify(&self) -> Result<()> {
        let fail = |i: usize, message: String| {
            let node = &self.nodes[i];
            let path = if node.path.is_empty() { format!("%{i}") } else { node.path.clone() };
            Err(Error::Record { path, message: format!("{}: {message}", node.op.name()) })
        };
        let again = Recorder::new(self.shape, self.block_tokens);
        let (mut layers, mut states) = (vec![], vec![]);
        for (i, node) in self.nodes.iter().enumerate() {
            if let Some(v) = node.op.inputs().iter().find(|v| v.index() >= i) {
                return fail(i, format!("reads %{} before it is made", v.0));
            }
            if node.shape.elements() == 0 {
                return fail(i, format!("has no elements: {}", node.shape));
            }
            if let Op::Attention { spec, .. } = node.op {
                if layers.contains(&spec.layer) {
                    return fail(i, format!("uses cache layer {} a second time", spec.layer));
                }
                layers.push(spec.layer);
            }
            if let Some(state) = node.op.state() {
                if states.contains(&state) {
                    return fail(i, format!("uses state layer {state} a second time"));
                }
                states.push(state);
            }
            let v = again.replay(node);
            let (shape, dtype) = (again.shape_of(v), again.dtype(v));
            if again.is_sound() && (shape, dtype) != (node.shape, node.dtype) {
                return fail(i, format!("makes {shape} {dtype}, not {} {}", node.shape, node.dtype));
            }
        }
        again.into_error().map_or(Ok(()), Err)?;
        self.verify_outputs()
    }

    fn verify_outputs(&self) -> Result<()> {
        let Outputs { logits, argmax, top, log_sum_exp } = self.outputs;
        let (rows, k) = (self.shape.rows, self.tail.top_k);
        let is = |v: Value, name: &'static str, kind: fn(&Op, Value) -> bool| match self.nodes.get(v.index()) {
            Some(node) if kind(&node.op, logits) => Ok(node.shape),
            _ => Err(Error::Record { path: name.into(), message: format!("%{} is not that of %{}", v.0, logits.0) }),
        };
        is(argmax, "argmax", |op, of| matches!(op, Op::Argmax { x } if *x == of))?;
        is(log_sum_exp, "log_sum_exp", |op, of| matches!(op, Op::LogSumExp { x } if *x == of))?;
        let best = top.map(|v| is(v, "top", |op, of| matches!(op, Op::TopK { x, .. } if *x == of))).transpose()?;
        if best.map_or(0, |shape| shape.last()) != k {
            return Err(Error::Record { path: "top".into(), message: format!("the tail asks for {k} candidates") });
        }
        let node = self.node(logits);
        let masked = matches!(node.op, Op::MaskLogits { .. });
        if node.dtype != DType::F32 || node.shape.first() != rows || masked != self.tail.masked {
            let message = format!("%{} is not the {rows} f32 rows that the tail asks for", logits.0);
            return Err(Error::Record { path: "logits".into(), message });
        }
        Ok(())
    }

    /// Checks that the cache `kv` holds every layer this program attends with.
    ///
    /// # Errors
    /// [`Error::Record`] naming the node's path.
    pub fn verify_kv(&self, kv: &KvSpec) -> Result<()> {
        for node in &self.nodes {
            let Op::Attention { k, v, spec, .. } = node.op else { continue };
            let (k, v) = (self.node(k).shape, self.node(v).shape);
            let fits = kv
                .layers
                .get(spec.layer)
                .is_some_and(|l| k.dims()[1..] == [l.kv_heads, l.k_dim] && v.dims()[1..] == [l.kv_heads, l.v_dim]);
            if !fits || kv.block_tokens != self.block_tokens {
                let (path, layer) = (node.path.clone(), spec.layer);
                let message = format!("attention: cache layer {layer} does not hold k {k}, v {v}");
                return Err(Error::Record { path, message });
            }
        }
        Ok(())
    }

    /// True when the program reads and writes the state of sequences.
    pub fn keeps_state(&self) -> bool {
        self.nodes.iter().any(|n| n.op.state().is_some())
    }

    /// Checks that the reserved `layers` hold every state this program keeps.
    ///
    /// # Errors
    /// [`Error::Record`] naming the node's path.
    pub fn verify_state(&self, layers: &[StateLayer]) -> Result<()> {
        for node in &self.nodes {
            let Some(index) = node.op.state() else { continue };
            let inputs: Vec<Shape> = node.op.inputs().iter().map(|v| self.node(*v).shape).collect();
            let shape = node.op.state_shape(&inputs).expect("it keeps a state: this is a bug");
            if layers.get(index).is_none_or(|l| l.shape != shape) {
                let message = format!("{}: state layer {index} was not reserved for {shape}", node.op.name());
                return Err(Error::Record { path: node.path.clone(), message });
            }
        }
        Ok(())
    }

    /// Checks that `batch` is one this program can run with a cache of `kv_blocks` blocks: [`Batch::verify`], its
    /// shape, masks and token ids.
    ///
    /// # Errors
    /// One line naming the field that is off.
    pub fn accepts(&self, batch: &Batch, kv_blocks: usize) -> Result<(), String> {
        if batch.shape != self.shape {
            return Err(format!("the batch has shape {:?}, the program {:?}", batch.shape, self.shape));
        }
        batch.verify(self.block_tokens, kv_blocks)?;
        let words = if self.tail.masked { self.shape.rows * self.vocab().div_ceil(32) } else { 0 };
        if !batch.masks.is_empty() && batch.masks.len() != words {
            return Err(format!("masks has {} entries, the program takes {words}", batch.masks.len()));
        }
        self.finds_rows(batch)
    }

    /// Checks that every table of the program has a row for each of the batch's tokens, or positions.
    ///
    /// # Errors
    /// One line naming the one it has not.
    pub fn finds_rows(&self, batch: &Batch) -> Result<(), String> {
        for node in &self.nodes {
            let Op::Embed { ids, table } = node.op else { continue };
            let (what, ids) = match self.node(ids).op {
                Op::Positions => ("position", &batch.positions),
                _ => ("token", &batch.tokens),
            };
            let rows = table.shape.first();
            if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
                return Err(format!("{what} {id} is not in a vocabulary of {rows}"));
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
