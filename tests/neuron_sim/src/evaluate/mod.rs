//! Owns the evaluation of a verified graph, one instruction after another. An index out of range is a fault, as on the
//! device.

mod arithmetic;
mod place;

use std::rc::Rc;

use crate::graph::{Graph, Instruction, Ty};
use crate::value::{Data, Value};

/// An index beyond its tensor.
#[derive(Debug)]
pub struct OutOfBounds(pub String);

/// The graph's outputs.
///
/// # Errors
/// A gather or scatter index out of range.
pub fn evaluate(graph: &Graph, inputs: Vec<Value>) -> Result<Vec<Value>, OutOfBounds> {
    let mut last_use: Vec<usize> = vec![0; graph.instructions.len()];
    for (at, i) in graph.instructions.iter().enumerate() {
        i.operands.iter().for_each(|o| last_use[*o] = at);
    }
    graph.results.iter().for_each(|r| last_use[*r] = usize::MAX);
    let mut inputs: Vec<Option<Value>> = inputs.into_iter().map(Some).collect();
    let mut values: Vec<Option<Rc<Value>>> = vec![];
    for (at, i) in graph.instructions.iter().enumerate() {
        let value = if i.opcode == "parameter" {
            inputs[i.parameter].take().expect("verified graphs number parameters once")
        } else {
            let operands: Vec<&Value> = i
                .operands
                .iter()
                .map(|o| values[*o].as_deref().expect("operands are kept to their last use"))
                .collect();
            instruction(i, &operands)?
        };
        values.push(Some(Rc::new(value)));
        for o in &i.operands {
            if last_use[*o] <= at {
                values[*o] = None;
            }
        }
    }
    let take = |r: &usize| values[*r].as_deref().expect("results are kept").clone();
    Ok(graph.results.iter().map(take).collect())
}

fn instruction(i: &Instruction, x: &[&Value]) -> Result<Value, OutOfBounds> {
    let shape = i.shape.clone().expect("verified graphs hold no inner tuples");
    let dims = shape.dims.clone();
    let data = match i.opcode.as_str() {
        "constant" => return Ok(Value::decode(&shape, &i.literal)),
        "iota" => Data::Int(place::iota(&dims, i.dimensions[0])),
        "abs" | "cosine" | "erf" | "exponential" | "log" | "logistic" | "negate" | "rsqrt" | "sine" | "tanh" => {
            let f = arithmetic::unary(&i.opcode);
            Data::Float(x[0].floats().iter().map(|v| f(*v)).collect())
        }
        "add" | "divide" | "maximum" | "minimum" | "multiply" | "subtract" | "and" | "shift-right-logical" => {
            arithmetic::binary(&i.opcode, x[0], x[1])
        }
        "compare" => Data::Pred(arithmetic::compare(&i.direction, x[0], x[1])),
        "select" => arithmetic::select(x[0].preds(), x[1], x[2]),
        "convert" => arithmetic::convert(x[0], shape.ty),
        "reshape" => x[0].data.clone(),
        "transpose" => {
            let from = place::strides(&x[0].shape.dims);
            place::view(x[0], &dims, &i.dimensions.iter().map(|d| from[*d]).collect::<Vec<_>>(), 0)
        }
        "broadcast" => {
            let from = place::strides(&x[0].shape.dims);
            let mut strides = vec![0; dims.len()];
            i.dimensions.iter().zip(from).for_each(|(at, stride)| strides[*at] = stride);
            place::view(x[0], &dims, &strides, 0)
        }
        "slice" => {
            let from = place::strides(&x[0].shape.dims);
            let strides: Vec<usize> = from.iter().zip(&i.slices).map(|(s, (_, _, step))| s * step).collect();
            let base = from.iter().zip(&i.slices).map(|(s, (start, ..))| s * start).sum();
            place::view(x[0], &dims, &strides, base)
        }
        "concatenate" => place::concatenate(x, i.dimensions[0]),
        "dot" => Data::Float(arithmetic::dot(&i.dot, x[0], x[1])),
        "reduce" => arithmetic::reduce(&i.called, x[0], x[1], i.dimensions[0]),
        "gather" => place::gather(x[0], &indices(i, x)?),
        "scatter" => place::scatter(x[0], &indices(i, x)?, x[2]),
        other => unreachable!("the verifier refuses {other}"),
    };
    Ok(Value::new(shape, data))
}

/// The row indices of a gather or scatter, all within the operand.
fn indices(i: &Instruction, x: &[&Value]) -> Result<Vec<usize>, OutOfBounds> {
    debug_assert_eq!(x[1].shape.ty, Ty::S32);
    let rows = x[0].shape.dims[0];
    let within = |v: &i32| usize::try_from(*v).ok().filter(|v| *v < rows);
    let all = x[1]
        .ints()
        .iter()
        .map(|v| within(v).ok_or_else(|| OutOfBounds(format!("{} at {}: row {v} of {rows}", i.name, i.op_name))));
    all.collect()
}
