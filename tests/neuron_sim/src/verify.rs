//! Owns what the stand-in compiler refuses: shapes that do not follow from their operands, operations and types that the
//! device does not have. Error codes are those of the real compiler's documentation where there is one.

use crate::graph::{Graph, Instruction, Shape, Ty};

/// Checks a whole graph.
///
/// # Errors
/// The first instruction that is off, by name and place.
pub fn verify(graph: &Graph) -> Result<(), String> {
    for i in &graph.instructions {
        let place = if i.op_name.is_empty() { String::new() } else { format!(" at {}", i.op_name) };
        let fail = |e: String| format!("{e} ({}{place})", i.name);
        let shape = i.shape.as_ref().ok_or_else(|| fail("a tuple within the graph".into()))?;
        let operands: Option<Vec<&Shape>> = i.operands.iter().map(|o| graph.instructions[*o].shape.as_ref()).collect();
        let operands = operands.ok_or_else(|| fail("a tuple as operand".into()))?;
        match infer(i, shape, &operands).map_err(fail)? {
            Some(inferred) if inferred != *shape => {
                return Err(fail(format!("[NCC_EVRF064] says {shape:?}, its operands say {inferred:?}")));
            }
            _ => {}
        }
    }
    for result in &graph.results {
        if graph.instructions[*result].opcode == "parameter" {
            return Err("an output is a bare parameter: copy it".into());
        }
    }
    for (output, parameter) in &graph.aliases {
        let (o, p) = (graph.outputs.get(*output), graph.inputs.get(*parameter));
        if !matches!((o, p), (Some(o), Some(p)) if o.shape == p.shape) {
            return Err(format!("output {output} cannot share memory with parameter {parameter}"));
        }
    }
    Ok(())
}

/// The shape that follows from the operands; `None` where the instruction alone says it.
fn infer(i: &Instruction, says: &Shape, operands: &[&Shape]) -> Result<Option<Shape>, String> {
    let count = |n: usize| match operands.len() == n {
        true => Ok(()),
        false => Err(format!("{} takes {n} operands, not {}", i.opcode, operands.len())),
    };
    let same = |a: &Shape, b: &Shape| match a == b {
        true => Ok(()),
        false => Err(format!("[NCC_EVRF064] operands {a:?} and {b:?} differ")),
    };
    let of = |ty: Ty, dims: &[usize]| Ok(Some(Shape { ty, dims: dims.to_vec() }));
    match i.opcode.as_str() {
        "parameter" => Ok(None),
        "constant" if says.dims.is_empty() && i.literal.len() == says.ty.bytes() => Ok(None),
        "iota" if says.ty == Ty::S32 && i.dimensions.len() == 1 && i.dimensions[0] < says.dims.len() => Ok(None),
        "abs" | "cosine" | "erf" | "exponential" | "log" | "logistic" | "negate" | "rsqrt" | "sine" | "tanh" => {
            count(1)?;
            if !operands[0].ty.is_float() {
                return Err(format!("{} of {:?}", i.opcode, operands[0].ty));
            }
            Ok(Some(operands[0].clone()))
        }
        "add" | "divide" | "maximum" | "minimum" | "multiply" | "subtract" | "and" | "shift-right-logical" => {
            count(2)?;
            same(operands[0], operands[1])?;
            let bits = matches!(i.opcode.as_str(), "and" | "shift-right-logical");
            let fits = match operands[0].ty {
                Ty::S32 => true,
                Ty::Pred => i.opcode == "and",
                // Bytes are stored and moved; arithmetic on them is for s32 and floats.
                Ty::S8 | Ty::U8 => false,
                _ => !bits,
            };
            if fits { Ok(Some(operands[0].clone())) } else { Err(format!("{} of {:?}", i.opcode, operands[0].ty)) }
        }
        "compare" => {
            count(2)?;
            same(operands[0], operands[1])?;
            of(Ty::Pred, &operands[0].dims)
        }
        "select" => {
            count(3)?;
            same(operands[1], operands[2])?;
            if operands[0].ty != Ty::Pred || operands[0].dims != operands[1].dims {
                return Err("select by something other than a predicate of its shape".into());
            }
            Ok(Some(operands[1].clone()))
        }
        "convert" => {
            count(1)?;
            if matches!(says.ty, Ty::S8 | Ty::U8) {
                return Err(format!("the stand-in converts nothing to {:?}", says.ty));
            }
            of(says.ty, &operands[0].dims)
        }
        "reshape" => {
            count(1)?;
            if says.elements() != operands[0].elements() {
                return Err("a reshape to another number of elements".into());
            }
            of(operands[0].ty, &says.dims)
        }
        "transpose" => {
            count(1)?;
            let mut order = i.dimensions.clone();
            order.sort_unstable();
            if order != (0..operands[0].dims.len()).collect::<Vec<_>>() {
                return Err(format!("{:?} is no order of {} dimensions", i.dimensions, operands[0].dims.len()));
            }
            let dims: Vec<usize> = i.dimensions.iter().map(|d| operands[0].dims[*d]).collect();
            of(operands[0].ty, &dims)
        }
        "broadcast" => {
            count(1)?;
            let fits = i.dimensions.len() == operands[0].dims.len()
                && i.dimensions.is_sorted_by(|a, b| a < b)
                && operands[0].dims.iter().zip(&i.dimensions).all(|(d, at)| says.dims.get(*at) == Some(d));
            if !fits {
                return Err(format!("{:?} does not broadcast at {:?}", operands[0], i.dimensions));
            }
            of(operands[0].ty, &says.dims)
        }
        "slice" => {
            count(1)?;
            let inside = |((start, end, stride), d): (&(usize, usize, usize), &usize)| {
                (start < end && end <= d && *stride > 0).then(|| (end - start).div_ceil(*stride))
            };
            let dims: Option<Vec<usize>> = i.slices.iter().zip(&operands[0].dims).map(inside).collect();
            of(operands[0].ty, &dims.ok_or("a slice beyond its operand")?)
        }
        "concatenate" => {
            let (first, dim) =
                (operands.first().ok_or("nothing to join")?, *i.dimensions.first().ok_or("no dimension")?);
            let mut shape = (*first).clone();
            shape.dims[dim] = operands.iter().map(|o| o.dims[dim]).sum();
            for o in operands {
                let mut like = (*o).clone();
                like.dims[dim] = shape.dims[dim];
                same(&like, &shape)?;
            }
            Ok(Some(shape))
        }
        "dot" => dot(i, says, operands).map(Some),
        "reduce" => {
            count(2)?;
            let [dim] = i.dimensions[..] else { return Err("reduces other than one dimension".into()) };
            if !matches!(i.called.as_str(), "add" | "maximum" | "minimum") || !operands[1].dims.is_empty() {
                return Err(format!("reduces by {:?} from {:?}", i.called, operands[1]));
            }
            if !matches!(operands[0].ty, Ty::S32 | Ty::F16 | Ty::F32 | Ty::Bf16)
                || operands[0].ty != operands[1].ty
                || dim >= operands[0].dims.len()
            {
                return Err(format!("reduces dimension {dim} of {:?}", operands[0]));
            }
            let mut dims = operands[0].dims.clone();
            dims.remove(dim);
            of(operands[0].ty, &dims)
        }
        "gather" => {
            count(2)?;
            let (x, index) = (operands[0], operands[1]);
            let rest = (1..x.dims.len()).collect::<Vec<_>>();
            let sizes = [&[1], &x.dims[1..]].concat();
            let rows = i.rows == ([rest, vec![0], vec![0]], 1) && i.slice_sizes == sizes;
            if !rows || index.ty != Ty::S32 || index.dims.len() != 1 {
                return Err("the stand-in gathers whole rows by [n] s32 only".into());
            }
            of(x.ty, &[&index.dims, &x.dims[1..]].concat())
        }
        "scatter" => {
            count(3)?;
            let (x, index, update) = (operands[0], operands[1], operands[2]);
            let rest = (1..x.dims.len()).collect::<Vec<_>>();
            let rows = i.rows == ([rest, vec![0], vec![0]], 1) && i.called == "copy";
            if !rows || index.ty != Ty::S32 || index.dims.len() != 1 {
                return Err("the stand-in scatters whole rows by [n] s32 only".into());
            }
            same(update, &Shape { ty: x.ty, dims: [&index.dims, &x.dims[1..]].concat() })?;
            Ok(Some(x.clone()))
        }
        "sort" => Err("[NCC_EVRF029] Operation sort is not supported on trn2. Use TopK or an alternative".into()),
        other => Err(format!("[NCC_EVRF001] An unsupported operator was used: {other}")),
    }
}

fn dot(i: &Instruction, says: &Shape, operands: &[&Shape]) -> Result<Shape, String> {
    let [left, right] = operands[..] else { return Err("a dot takes two operands".into()) };
    if left.ty != right.ty || !left.ty.is_float() || !says.ty.is_float() {
        return Err(format!("a dot of {:?} and {:?}", left.ty, right.ty));
    }
    let [left_sum, right_sum, left_batch, right_batch] = &i.dot;
    let agree = |l: &[usize], r: &[usize]| {
        l.len() == r.len()
            && l.iter().zip(r).all(|(l, r)| left.dims.get(*l).is_some_and(|d| right.dims.get(*r) == Some(d)))
    };
    if left_sum.is_empty() || !agree(left_sum, right_sum) || !agree(left_batch, right_batch) {
        return Err(format!("[NCC_EVRF064] dot dimensions {:?} of {left:?} and {right:?}", i.dot));
    }
    let rest = |shape: &Shape, sum: &[usize], batch: &[usize]| -> Vec<usize> {
        let kept = (0..shape.dims.len()).filter(|d| !sum.contains(d) && !batch.contains(d));
        kept.map(|d| shape.dims[d]).collect()
    };
    let batch: Vec<usize> = left_batch.iter().map(|d| left.dims[*d]).collect();
    let dims = [batch, rest(left, left_sum, left_batch), rest(right, right_sum, right_batch)].concat();
    Ok(Shape { ty: says.ty, dims })
}
