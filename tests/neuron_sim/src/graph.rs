//! Owns a graph as read from `HloModuleProto`: what the evaluator needs, no more. Field numbers are those of XLA's
//! `hlo.proto` and `xla_data.proto`.

use std::collections::HashMap;

use crate::wire::{Field, fields, packed};

/// Element types the device has and the stand-in computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    Pred,
    S8,
    U8,
    S32,
    F16,
    F32,
    Bf16,
}

impl Ty {
    pub fn bytes(self) -> usize {
        match self {
            Self::Pred | Self::S8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::S32 | Self::F32 => 4,
        }
    }

    pub fn is_float(self) -> bool {
        !matches!(self, Self::Pred | Self::S8 | Self::U8 | Self::S32)
    }

    /// The runtime's own numbering (`nrt_dtype_t`).
    pub fn runtime_code(self) -> u32 {
        match self {
            Self::S8 => 2,
            Self::Pred | Self::U8 => 3,
            Self::Bf16 => 6,
            Self::F16 => 7,
            Self::S32 => 8,
            Self::F32 => 10,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub ty: Ty,
    pub dims: Vec<usize>,
}

impl Shape {
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.ty.bytes()
    }
}

/// An instruction; operands are indices into its computation.
#[derive(Clone, Debug, Default)]
pub struct Instruction {
    pub name: String,
    pub opcode: String,
    /// `None` for a tuple.
    pub shape: Option<Shape>,
    pub operands: Vec<usize>,
    pub parameter: usize,
    /// What the meaning of depends on the opcode: transposition, broadcast places, reduced, iota or joined dimensions.
    pub dimensions: Vec<usize>,
    /// (start, end, stride) a dimension.
    pub slices: Vec<(usize, usize, usize)>,
    pub direction: String,
    pub literal: Vec<u8>,
    /// Left sum, right sum, left batch, right batch.
    pub dot: [Vec<usize>; 4],
    /// Offset or window, collapsed or inserted, operand dimensions; then the index vector's dimension.
    pub rows: ([Vec<usize>; 3], usize),
    pub slice_sizes: Vec<usize>,
    /// What the called computation does with its two parameters: an opcode, `copy` for the second one alone.
    pub called: String,
    pub op_name: String,
    names: HashMap<String, String>,
    id: u64,
    operand_ids: Vec<u64>,
    calls: Vec<u64>,
}

/// A tensor of the interface.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub shape: Shape,
}

#[derive(Clone, Debug)]
pub struct Graph {
    pub instructions: Vec<Instruction>,
    /// By parameter number.
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// The instruction of each output.
    pub results: Vec<usize>,
    /// (output, parameter) that share memory.
    pub aliases: Vec<(usize, usize)>,
}

/// Reads a module.
///
/// # Errors
/// What is malformed, or of a type that the device does not have.
pub fn parse(bytes: &[u8]) -> Result<Graph, String> {
    let mut computations: HashMap<u64, Vec<Instruction>> = HashMap::new();
    let (mut entry, mut aliases) = (0, vec![]);
    for field in fields(bytes)? {
        match field {
            Field::Int(6, id) => entry = id,
            Field::Bytes(3, content) => {
                let (id, instructions) = computation(content)?;
                computations.insert(id, instructions);
            }
            Field::Bytes(8, content) => aliases = alias_table(content)?,
            _ => {}
        }
    }
    let mut instructions = computations.remove(&entry).ok_or("there is no entry computation")?;
    for i in &mut instructions {
        if let [called] = i.calls[..] {
            let body = computations.get(&called).ok_or(format!("{} calls what is not there", i.name))?;
            let root = body.last().filter(|_| body.len() == 3).ok_or("a called computation is not of two values")?;
            i.called = root.opcode.clone();
        }
    }
    let root = instructions.pop().filter(|r| r.opcode == "tuple").ok_or("the result is not a tuple")?;
    let mut inputs: Vec<(usize, Port)> = vec![];
    for i in instructions.iter().filter(|i| i.opcode == "parameter") {
        let name = i.names.get("neff_input_names").ok_or(format!("parameter {} has no neff_input_names", i.name))?;
        let shape = i.shape.clone().ok_or("a parameter is a tuple")?;
        inputs.push((i.parameter, Port { name: name.clone(), shape }));
    }
    inputs.sort_by_key(|(number, _)| *number);
    if inputs.iter().enumerate().any(|(i, (number, _))| i != *number) {
        return Err("parameters are not numbered from 0".into());
    }
    let names = root.names.get("neff_output_names").ok_or("the result has no neff_output_names")?;
    let names: Vec<&str> = names.split(',').collect();
    if names.len() != root.operands.len() {
        return Err(format!("{} output names for {} outputs", names.len(), root.operands.len()));
    }
    let outputs = names.iter().zip(&root.operands).map(|(name, operand)| {
        let shape = instructions[*operand].shape.clone().ok_or("an output is a tuple")?;
        Ok(Port { name: name.to_string(), shape })
    });
    let outputs = outputs.collect::<Result<Vec<_>, String>>()?;
    let inputs = inputs.into_iter().map(|(_, port)| port).collect();
    Ok(Graph { results: root.operands, instructions, inputs, outputs, aliases })
}

fn computation(bytes: &[u8]) -> Result<(u64, Vec<Instruction>), String> {
    let (mut id, mut root, mut instructions) = (0, 0, vec![]);
    for field in fields(bytes)? {
        match field {
            Field::Int(5, v) => id = v,
            Field::Int(6, v) => root = v,
            Field::Bytes(2, content) => instructions.push(instruction(content)?),
            _ => {}
        }
    }
    let place: HashMap<u64, usize> = instructions.iter().enumerate().map(|(at, i)| (i.id, at)).collect();
    for (at, i) in instructions.iter_mut().enumerate() {
        for operand in &i.operand_ids {
            let before = place.get(operand).filter(|o| **o < at);
            i.operands.push(*before.ok_or(format!("{} reads what is not made before it", i.name))?);
        }
    }
    if place.get(&root) != Some(&(instructions.len().wrapping_sub(1))) {
        return Err("the root is not the last instruction".into());
    }
    Ok((id, instructions))
}

fn instruction(bytes: &[u8]) -> Result<Instruction, String> {
    let mut i = Instruction::default();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    for field in fields(bytes)? {
        match field {
            Field::Bytes(1, b) => i.name = text(b),
            Field::Bytes(2, b) => i.opcode = text(b),
            Field::Bytes(3, b) => i.shape = shape(b)?,
            Field::Bytes(7, b) => {
                for field in fields(b)? {
                    if let Field::Bytes(2, b) = field {
                        i.op_name = text(b);
                    }
                }
            }
            Field::Bytes(8, b) => i.literal = literal(b)?,
            Field::Int(9, v) => i.parameter = v as usize,
            Field::Bytes(14, b) => i.dimensions = sizes(b)?,
            Field::Bytes(17, b) => {
                let mut slice = (0, 0, 1);
                for field in fields(b)? {
                    match field {
                        Field::Int(1, v) => slice.0 = v as usize,
                        Field::Int(2, v) => slice.1 = v as usize,
                        Field::Int(3, v) => slice.2 = v as usize,
                        _ => {}
                    }
                }
                i.slices.push(slice);
            }
            Field::Bytes(30, b) => {
                for field in fields(b)? {
                    if let Field::Bytes(n @ 1..=4, b) = field {
                        i.dot[n as usize - 1] = sizes(b)?;
                    }
                }
            }
            Field::Bytes(33 | 48, b) => {
                for field in fields(b)? {
                    match field {
                        Field::Bytes(n @ 1..=3, b) => i.rows.0[n as usize - 1] = sizes(b)?,
                        Field::Int(4, v) => i.rows.1 = v as usize,
                        _ => {}
                    }
                }
            }
            Field::Bytes(34, b) => i.slice_sizes = sizes(b)?,
            Field::Int(35, v) => i.id = v,
            Field::Bytes(36, b) => i.operand_ids = packed(b)?.into_iter().map(|v| v as u64).collect(),
            Field::Bytes(38, b) => i.calls = packed(b)?.into_iter().map(|v| v as u64).collect(),
            Field::Bytes(63, b) => i.direction = text(b),
            Field::Bytes(68, b) => i.names = attributes(b)?,
            _ => {}
        }
    }
    Ok(i)
}

/// `ShapeProto`; `None` for a tuple.
fn shape(bytes: &[u8]) -> Result<Option<Shape>, String> {
    let (mut ty, mut dims) = (0, vec![]);
    for field in fields(bytes)? {
        match field {
            Field::Int(2, v) => ty = v,
            Field::Bytes(3, b) => dims = packed(b)?,
            Field::Bytes(6, b) if b.iter().any(|d| *d != 0) => return Err("[NCC_EVRF009] a dynamic shape".into()),
            _ => {}
        }
    }
    let ty = match ty {
        1 => Ty::Pred,
        2 => Ty::S8,
        6 => Ty::U8,
        4 => Ty::S32,
        10 => Ty::F16,
        11 => Ty::F32,
        13 => return Ok(None),
        16 => Ty::Bf16,
        other => return Err(format!("[NCC_EVRF004] element type {other} is not supported")),
    };
    if dims.iter().any(|d| *d < 0) {
        return Err("[NCC_EVRF009] a dynamic shape".into());
    }
    Ok(Some(Shape { ty, dims: dims.into_iter().map(|d| d as usize).collect() }))
}

/// The bytes of a scalar, little end first.
fn literal(bytes: &[u8]) -> Result<Vec<u8>, String> {
    for field in fields(bytes)? {
        match field {
            Field::Bytes(4, b) => return Ok(packed(b)?.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect()),
            Field::Bytes(8, b) => return Ok(b.to_vec()),
            _ => {}
        }
    }
    Err("a constant of neither s32 nor f32".into())
}

fn attributes(bytes: &[u8]) -> Result<HashMap<String, String>, String> {
    let mut out = HashMap::new();
    for field in fields(bytes)? {
        if let Field::Bytes(1, entry) = field {
            let mut pair = [String::new(), String::new()];
            for field in fields(entry)? {
                if let Field::Bytes(n @ 1..=2, b) = field {
                    pair[n as usize - 1] = String::from_utf8_lossy(b).into_owned();
                }
            }
            let [key, value] = pair;
            out.insert(key, value);
        }
    }
    Ok(out)
}

/// `HloInputOutputAliasProto`: (output, parameter) pairs.
fn alias_table(bytes: &[u8]) -> Result<Vec<(usize, usize)>, String> {
    let mut out = vec![];
    for field in fields(bytes)? {
        if let Field::Bytes(1, entry) = field {
            let (mut output, mut parameter) = (vec![], 0);
            for field in fields(entry)? {
                match field {
                    Field::Bytes(1, b) => output = sizes(b)?,
                    Field::Int(2, v) => parameter = v as usize,
                    _ => {}
                }
            }
            out.push((*output.first().ok_or("an alias names no output")?, parameter));
        }
    }
    Ok(out)
}

fn sizes(bytes: &[u8]) -> Result<Vec<usize>, String> {
    packed(bytes)?.into_iter().map(|v| usize::try_from(v).map_err(|_| "a negative size".to_string())).collect()
}
