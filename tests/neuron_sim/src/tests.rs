//! That the stand-in refuses what the device refuses. Graphs are written here by hand, field by field.

use crate::compiler::wrap;
use crate::config::{Config, Fault};
use crate::device::*;
use crate::graph::parse;
use crate::verify::verify;

const F32: u64 = 11;
const S32: u64 = 4;

/// A field of a message: an integer, or bytes.
enum Put<'a> {
    Int(u32, u64),
    Bytes(u32, &'a [u8]),
}
use Put::{Bytes, Int};

fn message(fields: &[Put<'_>]) -> Vec<u8> {
    fn varint(out: &mut Vec<u8>, mut v: u64) {
        while v > 127 {
            out.push(v as u8 | 128);
            v >>= 7;
        }
        out.push(v as u8);
    }
    let mut out = vec![];
    for field in fields {
        match field {
            Int(n, v) => {
                varint(&mut out, u64::from(n << 3));
                varint(&mut out, *v);
            }
            Bytes(n, b) => {
                varint(&mut out, u64::from(n << 3 | 2));
                varint(&mut out, b.len() as u64);
                out.extend_from_slice(b);
            }
        }
    }
    out
}

fn shape(ty: u64, dims: &[u8]) -> Vec<u8> {
    message(&[Int(2, ty), Bytes(3, dims)])
}

fn names(key: &str, value: &str) -> Vec<u8> {
    let entry = message(&[Bytes(1, key.as_bytes()), Bytes(2, value.as_bytes())]);
    message(&[Bytes(1, &entry)])
}

fn instruction(opcode: &str, shape: &[u8], id: u64, operands: &[u8], more: &[Put<'_>]) -> Vec<u8> {
    let head =
        [Bytes(1, opcode.as_bytes()), Bytes(2, opcode.as_bytes()), Bytes(3, shape), Int(35, id), Bytes(36, operands)];
    [message(&head), message(more)].concat()
}

/// `y = x[rows]`, then `x[rows] = update`, in place when `alias`. x is [4, 2] f32, rows [2] s32. `opcode` takes the
/// place of the last step's.
fn graph(alias: bool, opcode: &str, type_of_x: u64) -> Vec<u8> {
    let (x, rows, update) = (shape(type_of_x, &[4, 2]), shape(S32, &[2]), shape(type_of_x, &[2, 2]));
    let scalar = shape(type_of_x, &[]);
    let input = |name: &str, s: &[u8], id: u64, number: u64| {
        instruction("parameter", s, id, &[], &[Int(9, number), Bytes(68, &names("neff_input_names", name))])
    };
    let numbers = message(&[Bytes(1, &[1]), Bytes(2, &[0]), Bytes(3, &[0]), Int(4, 1)]);
    let body = [
        instruction("parameter", &scalar, 20, &[], &[Int(9, 0)]),
        instruction("parameter", &scalar, 21, &[], &[Int(9, 1)]),
        instruction("copy", &scalar, 22, &[21], &[]),
    ];
    let body: Vec<u8> = body.iter().flat_map(|i| message(&[Bytes(2, i)])).collect();
    let body = [body, message(&[Int(5, 30), Int(6, 22)])].concat();
    let all = [
        input("x", &x, 1, 0),
        input("rows", &rows, 2, 1),
        input("update", &update, 3, 2),
        instruction("gather", &update, 4, &[1, 2], &[Bytes(33, &numbers), Bytes(34, &[1, 2])]),
        instruction(opcode, &x, 5, &[1, 2, 3], &[Bytes(48, &numbers), Bytes(38, &[30])]),
        instruction("tuple", &shape(13, &[]), 6, &[4, 5], &[Bytes(68, &names("neff_output_names", "y,x"))]),
    ];
    let all: Vec<u8> = all.iter().flat_map(|i| message(&[Bytes(2, i)])).collect();
    let main = [all, message(&[Int(5, 31), Int(6, 6)])].concat();
    let mut module = message(&[Bytes(3, &body), Bytes(3, &main), Int(6, 31)]);
    if alias {
        let entry = message(&[Bytes(1, &[1]), Int(2, 0), Int(4, 2)]);
        module.extend(message(&[Bytes(8, &message(&[Bytes(1, &entry)]))]));
    }
    module
}

/// A running device with the graph loaded and its tensors: x, rows, update, y, and x anew.
struct Running {
    device: Device,
    model: usize,
    tensors: [usize; 5],
}

impl Running {
    fn new(alias: bool) -> Self {
        let mut device = Device::new(Config::default());
        assert_eq!(device.init(1), OK);
        let model = device.load(&wrap(&graph(alias, "scatter", F32), "trn2")).expect("loads");
        let tensors = [32, 8, 16, 16, 32].map(|bytes| device.allocate(0, bytes).expect("allocates"));
        let mut running = Self { device, model, tensors };
        running.write(0, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0].map(f32::to_le_bytes));
        running.write(2, &[-1.0, -2.0, -3.0, -4.0].map(f32::to_le_bytes));
        running
    }

    fn write(&mut self, tensor: usize, words: &[[u8; 4]]) {
        let bytes = words.as_flattened();
        self.device.writable(self.tensors[tensor], 0, bytes.len()).expect("fits").copy_from_slice(bytes);
    }

    fn floats(&self, tensor: usize, count: usize) -> Vec<f32> {
        let bytes = self.device.readable(self.tensors[tensor], 0, count * 4).expect("was written");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// With `x` written to the tensor numbered `out`.
    fn run(&mut self, rows: [i32; 2], out: usize) -> Status {
        self.write(1, &rows.map(i32::to_le_bytes));
        self.execute(out)
    }

    fn execute(&mut self, out: usize) -> Status {
        let (inputs, outputs) = (self.device.allocate_set(), self.device.allocate_set());
        for (name, tensor) in [("x", 0), ("rows", 1), ("update", 2)] {
            assert_eq!(self.device.add(inputs, name.into(), self.tensors[tensor]), OK);
        }
        for (name, tensor) in [("y", 3), ("x", out)] {
            assert_eq!(self.device.add(outputs, name.into(), self.tensors[tensor]), OK);
        }
        let status = self.device.execute(self.model, inputs, outputs);
        self.device.destroy_set(inputs);
        self.device.destroy_set(outputs);
        status
    }
}

#[test]
fn rows_are_gathered_and_scattered() {
    let mut in_place = Running::new(true);
    assert_eq!(in_place.run([3, 1], 0), OK);
    assert_eq!(in_place.floats(3, 4), [6.0, 7.0, 2.0, 3.0]);
    assert_eq!(in_place.floats(0, 8), [0.0, 1.0, -3.0, -4.0, 4.0, 5.0, -1.0, -2.0]);
    let mut anew = Running::new(false);
    assert_eq!(anew.run([0, 2], 4), OK);
    assert_eq!(anew.floats(4, 8), [-1.0, -2.0, 2.0, 3.0, -3.0, -4.0, 6.0, 7.0]);
    assert_eq!(anew.floats(0, 8), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn an_index_out_of_range_is_a_fault() {
    for rows in [[4, 0], [0, -1], [i32::MAX, 0]] {
        assert_eq!(Running::new(true).run(rows, 0), OUT_OF_BOUNDS, "{rows:?}");
    }
}

#[test]
fn memory_is_shared_as_declared_and_only_so() {
    assert_eq!(Running::new(true).run([0, 1], 4), INVALID, "declared and not done");
    assert_eq!(Running::new(false).run([0, 1], 0), INVALID, "done and not declared");
    assert_eq!(Running::new(false).run([0, 1], 3), BAD_INPUT, "of another size");
}

#[test]
fn memory_that_was_never_written_is_not_read() {
    let mut running = Running::new(true);
    assert_eq!(running.execute(0), FAILURE, "rows were not written");
    assert_eq!(running.device.readable(running.tensors[3], 0, 16).err(), Some(FAILURE));
}

#[test]
fn a_result_that_is_no_number_is_said() {
    let mut running = Running::new(true);
    running.write(2, &[f32::NAN, 0.0, 0.0, 0.0].map(f32::to_le_bytes));
    assert_eq!(running.run([0, 1], 0), NOT_A_NUMBER);
}

#[test]
fn life_memory_and_handles() {
    let mut device = Device::new(Config { hbm_bytes: 100, ..Config::default() });
    assert_eq!(device.live(), Err(UNINITIALIZED));
    assert_eq!(device.init(1), OK);
    let first = device.allocate(0, 60).expect("fits");
    assert_eq!(device.allocate(0, 60), Err(RESOURCE));
    assert_eq!(device.allocate(9, 1), Err(INVALID), "no such core");
    device.free(first);
    let kept = device.allocate(0, 60).expect("fits again");
    assert_eq!(device.readable(first, 0, 1).err(), Some(INVALID_HANDLE), "freed");
    assert_eq!(device.writable(kept, 50, 11).err(), Some(INVALID), "beyond the end");
    assert_eq!(device.load(b"not a program"), Err(UNSUPPORTED_NEFF));
    let other = wrap(&graph(true, "scatter", F32), "trn1");
    assert_eq!(device.load(&other), Err(UNSUPPORTED_NEFF), "for another device");
    assert!(device.close().contains("leaked 1"));
    assert_eq!(device.live(), Err(CLOSED));
    assert_eq!(device.init(1), CLOSED, "a closed runtime stays closed");
}

#[test]
fn faults_come_at_their_call() {
    let fault = Fault { call: "nrt_load".into(), nth: 2, status: 1200 };
    let mut device = Device::new(Config { faults: vec![fault], ..Config::default() });
    let counted: Vec<_> = (0..3).map(|_| device.count("nrt_load")).collect();
    assert_eq!(counted, [None, Some(1200), None]);
}

#[test]
fn the_compiler_refuses_what_the_device_lacks() {
    let refused = |bytes: &[u8]| parse(bytes).and_then(|g| verify(&g)).expect_err("refused");
    assert!(refused(&graph(true, "sort", F32)).contains("EVRF029"));
    assert!(refused(&graph(true, "triangular-solve", F32)).contains("EVRF001"));
    const F64: u64 = 12;
    assert!(refused(&graph(true, "scatter", F64)).contains("EVRF004"));
    assert!(refused(&graph(true, "scatter", F32)[..40]).contains("cut off"));
    verify(&parse(&graph(true, "scatter", F32)).expect("reads")).expect("is fine");
}
