//! Owns the typed graph builder: every method infers the shape of its result and asserts that its operands fit, so a
//! graph that was built is well typed. A broken assertion is a bug of the lowering, never of the caller's model.

use std::collections::BTreeMap;

use super::module::{Module, Port};
use super::shape::tuple;
use super::wire::Message;
use super::{Shape, Ty};

/// An instruction of the graph under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::neuron) struct Node(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::neuron) enum Unary {
    Cosine,
    Erf,
    Exponential,
    Log,
    Logistic,
    Rsqrt,
    Sine,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::neuron) enum Binary {
    Add,
    And,
    Divide,
    Maximum,
    Minimum,
    Multiply,
    /// Arithmetic on bits: zeros move in from the left.
    ShiftRightLogical,
    Subtract,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::neuron) enum Compare {
    Eq,
    Ne,
    Le,
    Gt,
}

/// What a reduction does with two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::neuron) enum Reduce {
    Add,
    Max,
    Min,
}

/// Which dimensions of a dot are summed over and which are batches; the result is batches, left rest, right rest.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::neuron) struct Dot<'a> {
    pub left_sum: &'a [usize],
    pub right_sum: &'a [usize],
    pub left_batch: &'a [usize],
    pub right_batch: &'a [usize],
}

/// Builds one module. Ids ascend from 1 over all computations.
#[derive(Default)]
pub(in crate::neuron) struct Builder {
    nodes: Vec<(Message, Shape, u64)>,
    inputs: Vec<Port>,
    /// Sub-computations by what they compute: id and message.
    computations: BTreeMap<(&'static str, u64), (u64, Message)>,
    next_id: u64,
    path: String,
}

impl Builder {
    /// What the next instructions belong to: comes back in the compiler's messages.
    pub fn at(&mut self, path: String) {
        self.path = path;
    }

    pub fn shape(&self, x: Node) -> &Shape {
        &self.nodes[x.0].1
    }

    pub fn dims(&self, x: Node) -> Vec<usize> {
        self.nodes[x.0].1.dims.clone()
    }

    /// The next parameter, named `name` in the compiled program.
    pub fn parameter(&mut self, name: &str, shape: Shape) -> Node {
        let number = self.inputs.len() as u64;
        self.inputs.push(Port { name: name.into(), shape: shape.clone() });
        let names = attribute("neff_input_names", name);
        self.push_named(name, "parameter", shape, &[], |m| {
            m.int(9, number).message(68, &names);
        })
    }

    pub fn f32(&mut self, value: f32) -> Node {
        let shape = Shape::new(Ty::F32, &[]);
        let mut literal = Message::default();
        literal.message(1, &shape.message()).bytes(8, &value.to_le_bytes());
        self.constant(shape, &literal)
    }

    pub fn s32(&mut self, value: i32) -> Node {
        let shape = Shape::new(Ty::S32, &[]);
        let mut literal = Message::default();
        literal.message(1, &shape.message()).ints(4, [value as usize]);
        self.constant(shape, &literal)
    }

    /// `value` in every element.
    pub fn full_f32(&mut self, value: f32, dims: &[usize]) -> Node {
        let value = self.f32(value);
        self.broadcast(value, dims, &[])
    }

    pub fn full_s32(&mut self, value: i32, dims: &[usize]) -> Node {
        let value = self.s32(value);
        self.broadcast(value, dims, &[])
    }

    /// s32 counting 0, 1, 2 ... along `dim`.
    pub fn iota(&mut self, dims: &[usize], dim: usize) -> Node {
        assert!(dim < dims.len(), "iota counts along one of its dimensions: this is a bug");
        self.push("iota", Shape::new(Ty::S32, dims), &[], |m| {
            m.ints(14, [dim]);
        })
    }

    pub fn unary(&mut self, op: Unary, x: Node) -> Node {
        let name = match op {
            Unary::Cosine => "cosine",
            Unary::Erf => "erf",
            Unary::Exponential => "exponential",
            Unary::Log => "log",
            Unary::Logistic => "logistic",
            Unary::Rsqrt => "rsqrt",
            Unary::Sine => "sine",
            Unary::Tanh => "tanh",
        };
        let shape = self.shape(x).clone();
        assert!(shape.ty.is_float(), "{name} of floats: this is a bug");
        self.push(name, shape, &[x], |_| ())
    }

    pub fn binary(&mut self, op: Binary, a: Node, b: Node) -> Node {
        let name = match op {
            Binary::Add => "add",
            Binary::And => "and",
            Binary::Divide => "divide",
            Binary::Maximum => "maximum",
            Binary::Minimum => "minimum",
            Binary::Multiply => "multiply",
            Binary::ShiftRightLogical => "shift-right-logical",
            Binary::Subtract => "subtract",
        };
        let shape = self.shape(a).clone();
        assert_eq!(&shape, self.shape(b), "{name} of equal shapes: this is a bug");
        self.push(name, shape, &[a, b], |_| ())
    }

    pub fn compare(&mut self, how: Compare, a: Node, b: Node) -> Node {
        let direction = match how {
            Compare::Eq => "EQ",
            Compare::Ne => "NE",
            Compare::Le => "LE",
            Compare::Gt => "GT",
        };
        assert_eq!(self.shape(a), self.shape(b), "compared shapes are equal: this is a bug");
        let shape = Shape::new(Ty::Pred, &self.shape(a).dims);
        self.push("compare", shape, &[a, b], |m| {
            m.text(63, direction);
        })
    }

    /// `yes` where `which` holds, else `no`.
    pub fn select(&mut self, which: Node, yes: Node, no: Node) -> Node {
        let shape = self.shape(yes).clone();
        assert_eq!(&shape, self.shape(no), "select of equal shapes: this is a bug");
        assert_eq!(self.shape(which), &Shape::new(Ty::Pred, &shape.dims), "select by a predicate: this is a bug");
        self.push("select", shape, &[which, yes, no], |_| ())
    }

    /// `x` itself when it is of type `to` already.
    pub fn convert(&mut self, x: Node, to: Ty) -> Node {
        if self.shape(x).ty == to {
            return x;
        }
        let shape = Shape::new(to, &self.shape(x).dims);
        self.push("convert", shape, &[x], |_| ())
    }

    /// `x` itself when it has these dimensions already.
    pub fn reshape(&mut self, x: Node, dims: &[usize]) -> Node {
        if self.shape(x).dims == dims {
            return x;
        }
        let shape = Shape::new(self.shape(x).ty, dims);
        assert_eq!(shape.elements(), self.shape(x).elements(), "a reshape keeps its elements: this is a bug");
        self.push("reshape", shape, &[x], |_| ())
    }

    /// Result dimension `i` is dimension `order[i]` of `x`.
    pub fn transpose(&mut self, x: Node, order: &[usize]) -> Node {
        let from = self.shape(x).clone();
        let dims: Vec<usize> = order.iter().map(|d| from.dims[*d]).collect();
        self.push("transpose", Shape::new(from.ty, &dims), &[x], |m| {
            m.ints(14, order.iter().copied());
        })
    }

    /// `x` repeated to `dims`; its dimension `i` becomes dimension `at[i]`.
    pub fn broadcast(&mut self, x: Node, dims: &[usize], at: &[usize]) -> Node {
        let from = self.shape(x).clone();
        let ascends = at.is_sorted_by(|a, b| a < b);
        let fits = ascends && from.dims.len() == at.len() && from.dims.iter().zip(at).all(|(d, i)| dims[*i] == *d);
        assert!(fits, "broadcast {:?} to {dims:?} at {at:?} keeps sizes: this is a bug", from.dims);
        self.push("broadcast", Shape::new(from.ty, dims), &[x], |m| {
            m.ints(14, at.iter().copied());
        })
    }

    /// Entries `start .. end` of dimension `dim`.
    pub fn slice(&mut self, x: Node, dim: usize, start: usize, end: usize) -> Node {
        let from = self.shape(x).clone();
        assert!(start < end && end <= from.dims[dim], "a slice lies within its operand: this is a bug");
        let mut to = from.clone();
        to.dims[dim] = end - start;
        self.push("slice", to, &[x], |m| {
            for (i, d) in from.dims.iter().enumerate() {
                let (start, end) = if i == dim { (start, end) } else { (0, *d) };
                let mut range = Message::default();
                range.int(1, start as u64).int(2, end as u64).int(3, 1);
                m.message(17, &range);
            }
        })
    }

    pub fn concatenate(&mut self, parts: &[Node], dim: usize) -> Node {
        let mut shape = self.shape(parts[0]).clone();
        shape.dims[dim] = parts.iter().map(|p| self.shape(*p).dims[dim]).sum();
        for part in parts {
            let mut same = self.shape(*part).clone();
            same.dims[dim] = shape.dims[dim];
            assert_eq!(same, shape, "concatenated parts agree elsewhere: this is a bug");
        }
        self.push("concatenate", shape, parts, |m| {
            m.ints(14, [dim]);
        })
    }

    /// Sums of products, accumulated and returned as f32.
    pub fn dot(&mut self, a: Node, b: Node, how: Dot<'_>) -> Node {
        let (left, right) = (self.shape(a).clone(), self.shape(b).clone());
        assert!(left.ty == right.ty && left.ty.is_float(), "a dot of one float type: this is a bug");
        let pairs = how.left_sum.iter().zip(how.right_sum).chain(how.left_batch.iter().zip(how.right_batch));
        for (l, r) in pairs {
            assert_eq!(left.dims[*l], right.dims[*r], "dot dimensions agree: this is a bug");
        }
        let mut dims: Vec<usize> = how.left_batch.iter().map(|d| left.dims[*d]).collect();
        let rest = |shape: &Shape, sum: &[usize], batch: &[usize]| -> Vec<usize> {
            let kept = (0..shape.dims.len()).filter(|d| !sum.contains(d) && !batch.contains(d));
            kept.map(|d| shape.dims[d]).collect()
        };
        dims.extend(rest(&left, how.left_sum, how.left_batch));
        dims.extend(rest(&right, how.right_sum, how.right_batch));
        let mut numbers = Message::default();
        numbers.ints(1, how.left_sum.iter().copied()).ints(2, how.right_sum.iter().copied());
        numbers.ints(3, how.left_batch.iter().copied()).ints(4, how.right_batch.iter().copied());
        self.push("dot", Shape::new(Ty::F32, &dims), &[a, b], |m| {
            m.message(30, &numbers);
        })
    }

    /// Folds dimension `dim` away.
    pub fn reduce(&mut self, how: Reduce, x: Node, dim: usize) -> Node {
        let from = self.shape(x).clone();
        let (opcode, start) = match (how, from.ty) {
            (Reduce::Add, Ty::F32) => ("add", self.f32(0.0)),
            (Reduce::Max, Ty::F32) => ("maximum", self.f32(f32::NEG_INFINITY)),
            (Reduce::Min, Ty::F32) => ("minimum", self.f32(f32::INFINITY)),
            (Reduce::Min, Ty::S32) => ("minimum", self.s32(i32::MAX)),
            (how, ty) => panic!("nothing reduces {ty:?} by {how:?}: this is a bug"),
        };
        let mut to = from;
        to.dims.remove(dim);
        let computation = self.computation(opcode, to.ty);
        self.push("reduce", to, &[x, start], |m| {
            m.ints(14, [dim]).ints(38, [computation as usize]);
        })
    }

    /// Rows of `x [n, ..]` by `rows [m]` s32: `[m, ..]`. The device faults on an index beyond `n`.
    pub fn gather_rows(&mut self, x: Node, rows: Node) -> Node {
        let (from, index) = (self.shape(x).clone(), self.shape(rows).clone());
        assert!(index.ty == Ty::S32 && index.dims.len() == 1, "rows are [m] s32: this is a bug");
        let rank = from.dims.len();
        let dims = [&index.dims, &from.dims[1..]].concat();
        let mut numbers = Message::default();
        numbers.ints(1, 1..rank).ints(2, [0]).ints(3, [0]).int(4, 1);
        self.push("gather", Shape::new(from.ty, &dims), &[x, rows], |m| {
            m.message(33, &numbers).ints(34, std::iter::once(1).chain(from.dims[1..].iter().copied()));
        })
    }

    /// `x [n, ..]` with rows `rows [m]` s32 replaced by `update [m, ..]`. The device faults on an index beyond `n`.
    pub fn scatter_rows(&mut self, x: Node, rows: Node, update: Node) -> Node {
        let (shape, index) = (self.shape(x).clone(), self.shape(rows).clone());
        assert!(index.ty == Ty::S32 && index.dims.len() == 1, "rows are [m] s32: this is a bug");
        let wanted = Shape::new(shape.ty, &[&index.dims, &shape.dims[1..]].concat());
        assert_eq!(&wanted, self.shape(update), "an update a row: this is a bug");
        let computation = self.computation("assign", shape.ty);
        let mut numbers = Message::default();
        numbers.ints(1, 1..shape.dims.len()).ints(2, [0]).ints(3, [0]).int(4, 1);
        self.push("scatter", shape, &[x, rows, update], |m| {
            m.message(48, &numbers).ints(38, [computation as usize]);
        })
    }

    /// Ends the module: `outputs` by their names in the compiled program, `aliases` as (output, parameter) numbers that
    /// share memory.
    pub fn finish(mut self, outputs: &[(String, Node)], aliases: &[(usize, usize)]) -> Module {
        let ports: Vec<Port> =
            outputs.iter().map(|(name, x)| Port { name: name.clone(), shape: self.shape(*x).clone() }).collect();
        for (output, parameter) in aliases {
            assert_eq!(ports[*output].shape, self.inputs[*parameter].shape, "aliases agree: this is a bug");
        }
        let result = tuple(ports.iter().map(|p| &p.shape));
        let names: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
        let names = attribute("neff_output_names", &names.join(","));
        let root = self.id();
        let mut last = Message::default();
        last.text(1, "result").text(2, "tuple").message(3, &result).int(35, root);
        last.ints(36, outputs.iter().map(|(_, x)| self.nodes[x.0].2 as usize)).message(68, &names);
        let mut signature = Message::default();
        self.inputs.iter().for_each(|p| {
            signature.message(1, &p.shape.message());
        });
        signature.message(2, &result);
        self.inputs.iter().for_each(|p| {
            signature.text(3, &p.name);
        });
        let entry = self.id();
        let mut main = Message::default();
        main.text(1, "main");
        self.nodes.iter().for_each(|(node, ..)| {
            main.message(2, node);
        });
        main.message(2, &last).message(4, &signature).int(5, entry).int(6, root);
        let mut module = Message::default();
        module.text(1, "main").text(2, "main");
        self.computations.values().for_each(|(_, computation)| {
            module.message(3, computation);
        });
        module.message(3, &main).message(4, &signature).int(5, 1).int(6, entry);
        if !aliases.is_empty() {
            module.message(8, &alias_table(aliases));
        }
        Module { bytes: module.into_bytes(), inputs: self.inputs, outputs: ports }
    }

    fn constant(&mut self, shape: Shape, literal: &Message) -> Node {
        self.push("constant", shape, &[], |m| {
            m.message(8, literal);
        })
    }

    fn push(&mut self, opcode: &str, shape: Shape, operands: &[Node], extra: impl FnOnce(&mut Message)) -> Node {
        let name = format!("{opcode}.{}", self.next_id + 1);
        self.push_named(&name, opcode, shape, operands, extra)
    }

    fn push_named(
        &mut self,
        name: &str,
        opcode: &str,
        shape: Shape,
        operands: &[Node],
        extra: impl FnOnce(&mut Message),
    ) -> Node {
        let id = self.id();
        let mut node = Message::default();
        node.text(1, name).text(2, opcode).message(3, &shape.message());
        if !self.path.is_empty() {
            let mut metadata = Message::default();
            metadata.text(2, &self.path);
            node.message(7, &metadata);
        }
        node.int(35, id).ints(36, operands.iter().map(|o| self.nodes[o.0].2 as usize));
        extra(&mut node);
        self.nodes.push((node, shape, id));
        Node(self.nodes.len() - 1)
    }

    /// The scalar function `opcode` of (old, new), made once a type; `assign` is the new value.
    fn computation(&mut self, opcode: &'static str, ty: Ty) -> u64 {
        if let Some((id, _)) = self.computations.get(&(opcode, ty as u64)) {
            return *id;
        }
        let (computation, left, right, root) = (self.id(), self.id(), self.id(), self.id());
        let scalar = Shape::new(ty, &[]).message();
        let mut message = Message::default();
        message.text(1, &format!("{opcode}.{computation}"));
        for (number, id) in [left, right].into_iter().enumerate() {
            let mut parameter = Message::default();
            parameter.text(1, &format!("p{number}.{id}")).text(2, "parameter").message(3, &scalar);
            parameter.int(9, number as u64).int(35, id);
            message.message(2, &parameter);
        }
        // A root that is a bare parameter is legal HLO, but no producer we imitate emits one: copy it.
        let (code, operands) = if opcode == "assign" { ("copy", vec![right]) } else { (opcode, vec![left, right]) };
        let mut result = Message::default();
        result.text(1, &format!("{code}.{root}")).text(2, code).message(3, &scalar);
        result.int(35, root).ints(36, operands.iter().map(|o| *o as usize));
        let mut signature = Message::default();
        signature.message(1, &scalar).message(1, &scalar).message(2, &scalar).text(3, "old").text(3, "new");
        message.message(2, &result).message(4, &signature).int(5, computation).int(6, root);
        self.computations.insert((opcode, ty as u64), (computation, message));
        computation
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// `FrontendAttributes` with one entry: how the compiler learns the names of a program's tensors.
fn attribute(key: &str, value: &str) -> Message {
    let mut entry = Message::default();
    entry.text(1, key).text(2, value);
    let mut attributes = Message::default();
    attributes.message(1, &entry);
    attributes
}

/// `HloInputOutputAliasProto`: each pair must share its memory.
fn alias_table(aliases: &[(usize, usize)]) -> Message {
    const MUST_ALIAS: u64 = 2;
    let mut table = Message::default();
    for (output, parameter) in aliases {
        let mut entry = Message::default();
        entry.ints(1, [*output]).int(2, *parameter as u64).int(4, MUST_ALIAS);
        table.message(1, &entry);
    }
    table
}
