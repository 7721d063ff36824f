//! The two laws of the kernels, for every path, format and precision that this machine can run: right within the stated
//! tolerance against an f64 product of the decoded weights, and blind to the batch.

use super::*;

/// Shapes `[out, in]` for plain formats, with odd ones among them; block formats take those that fill their blocks.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 33), (100, 33), (33, 1), (65, 96), (96, 64), (31, 7), (40, 768), (1, 512)];

/// The largest relative error of f32 sums, in the norm of the product.
const SUM: f64 = 1e-6;
/// With activations rounded to 8 bits.
const INT8: f64 = 8e-3;
/// With activations rounded to bf16.
const BF16: f64 = 3e-3;

#[test]
fn products_are_right() {
    each_case(|case| {
        let x = noise(17 * case.inner(), 2);
        let error = case.error(&x, 17);
        let tolerance = match case.matrix.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Bf16 => BF16,
            #[cfg(target_arch = "x86_64")]
            Kernel::Int8(_) => INT8,
            _ => SUM,
        };
        assert!(error < tolerance, "{}: {error:e}", case.name);
    });
}

/// What rounding the activations costs apart, the kernels that round them are as exact as those that do not.
#[test]
fn products_of_activations_on_the_grid_are_exact_sums() {
    each_case(|case| {
        // Integers below 128, the largest 127 in each 32: exact as bf16 and as int8.
        let mut x: Vec<f32> = noise(9 * case.inner(), 4).iter().map(|v| (v * 80.0).round()).collect();
        for row in x.chunks_mut(case.inner()) {
            row.iter_mut().step_by(32).for_each(|v| *v = -127.0);
        }
        let error = case.error(&x, 9);
        assert!(error < SUM, "{}: {error:e}", case.name);
    });
}

/// Integer sums are exact and the groups are folded in one order, so instruction sets cannot be told apart.
#[test]
#[cfg(target_arch = "x86_64")]
fn all_instruction_sets_give_the_same_bits_in_int8() {
    let pool = Pool::new(2, 100).expect("threads start");
    let paths: Vec<Isa> = Isa::paths().into_iter().filter(|isa| int8::Instructions::of(*isa).is_some()).collect();
    for format in Format::ALL.into_iter().filter(|f| int8::multiplies(*f)) {
        for (out, inner) in [(65, 256), (40, 768), (96, 2048)] {
            let mut x = noise(7 * inner, 11);
            x.iter_mut().step_by(193).for_each(|v| *v *= 30.0);
            let t = extreme(tensor(format, out, inner));
            let products = paths.iter().map(|isa| {
                let matrix =
                    Matrix::pack(&pool, &mut Shelf::default(), &t, format, *isa, Precision::Native).expect("packs");
                let bits: Vec<u32> = multiply(&matrix, &pool, &x, 7).iter().map(|v| v.to_bits()).collect();
                bits
            });
            let products: Vec<_> = products.collect();
            for (isa, got) in paths.iter().zip(&products) {
                assert!(*got == products[0], "{} is not {} in {format} [{out}, {inner}]", isa.name(), paths[0].name());
            }
        }
    }
}

/// A row's result is the same bits alone and at every place of every batch, with one thread and with several.
#[test]
fn rows_are_blind_to_the_batch() {
    let pools = [1, 2, 3].map(|threads| Pool::new(threads, 100).expect("threads start"));
    each_case(|case| {
        let (inner, out) = (case.inner(), case.matrix.out());
        let x = noise(40 * inner, 3);
        let alone: Vec<f32> = x.chunks(inner).flat_map(|row| multiply(&case.matrix, &pools[0], row, 1)).collect();
        for m in (1..=14).chain([17, 25, 40]) {
            let (pool, first) = (&pools[m % 3], (40 - m) / 2); // so a row stands elsewhere in each batch
            let got = multiply(&case.matrix, pool, &x[first * inner..][..m * inner], m);
            let same = got.iter().zip(&alone[first * out..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: {m} rows, {} threads", case.name, pool.threads());
        }
    });
}

#[test]
fn only_the_columns_of_the_given_panels_are_written() {
    let pool = Pool::new(1, 0).expect("threads start");
    each_case(|case| {
        let (m, stride) = (5, case.matrix.out() + 3);
        let (x, mut rows) = (noise(m * case.inner(), 5), Rows::new());
        case.matrix.pack_rows(&pool, &x, m, &mut rows);
        let mut out = vec![7.5f32; m * stride];
        let panels = case.matrix.panels() - 1..case.matrix.panels();
        // SAFETY: `m` strides of room, one thread.
        unsafe { case.matrix.apply(&rows, panels.clone(), Apart(out.as_mut_ptr()), stride) };
        let whole = multiply(&case.matrix, &pool, &x, m);
        for (r, row) in out.chunks(stride).enumerate() {
            for (c, v) in row.iter().enumerate() {
                let ours = (panels.start * panel::COLUMNS..case.matrix.out()).contains(&c);
                let want = if ours { whole[r * case.matrix.out() + c] } else { 7.5 };
                assert_eq!(v.to_bits(), want.to_bits(), "{}: row {r}, column {c}", case.name);
            }
        }
    });
}

#[test]
fn rows_read_back_are_the_decoded_weights() {
    each_case(|case| {
        let mut row = vec![0.0; case.inner()];
        for (i, want) in case.weights.chunks(case.inner()).enumerate() {
            case.matrix.read_row(i, &mut row);
            assert!(row.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "{}: row {i}", case.name);
        }
    });
}

#[test]
fn a_nan_or_infinity_in_a_row_is_seen_in_that_row_only() {
    let pool = Pool::new(1, 0).expect("threads start");
    each_case(|case| {
        let mut x = noise(3 * case.inner(), 6);
        for bad in [f32::NAN, f32::INFINITY] {
            x[case.inner()] = bad;
            let got = multiply(&case.matrix, &pool, &x, 3);
            for (r, row) in got.chunks(case.matrix.out()).enumerate() {
                assert!(row.iter().all(|v| v.is_finite() == (r != 1)), "{}: {bad} in row {r}: {row:?}", case.name);
            }
        }
    });
}

/// Codes cannot tell an infinity, so its row is NaN rather than a number of some sign, and the same on every path.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_row_with_an_infinity_is_nan_in_int8() {
    let pool = Pool::new(1, 0).expect("threads start");
    for isa in Isa::paths().into_iter().filter(|isa| int8::Instructions::of(*isa).is_some()) {
        for format in Format::ALL.into_iter().filter(|f| int8::multiplies(*f)) {
            let t = tensor(format, 40, 256);
            let matrix = Matrix::pack(&pool, &mut Shelf::default(), &t, format, isa, Precision::Native).expect("packs");
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let (mut x, mut rows) = (noise(2 * 256, 6), Rows::new());
                x[256 + 37] = bad;
                let got = multiply(&matrix, &pool, &x, 2);
                let wrong = got.iter().enumerate().find(|(i, v)| v.is_nan() != (*i >= 40));
                assert!(wrong.is_none(), "{} {format}: {bad} gives {wrong:?}", isa.name());
                matrix.pack_rows(&pool, &x, 2, &mut rows);
                // SAFETY: two rows were packed, so as many bytes are there.
                let bytes = unsafe { std::slice::from_raw_parts(rows.block_at(0), 2 * matrix.layout().row_bytes()) };
                let groups = bytes.chunks(bytes.len() / 8);
                let codes = groups.flat_map(|group| &group[..64]).map(|code| *code as i8);
                assert!(codes.min() > Some(-128), "{} {format}: {bad} is coded as -128", isa.name());
            }
        }
    }
}

#[test]
fn weights_are_converted_as_the_format_says() {
    let pool = Pool::new(2, 100).expect("threads start");
    let values = noise(40 * 320, 8);
    let mut row = vec![0.0; 320];
    for from in [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_1] {
        let t = HostTensor::new("w", [40, 320], from, format::encode(from, &values)).expect("whole");
        for to in [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0] {
            let matrix =
                Matrix::pack(&pool, &mut Shelf::default(), &t, to, Isa::Portable, Precision::Exact).expect("converts");
            let mut want = vec![0.0; 40 * 320];
            format::decode(to, &format::encode(to, &t.to_f32()), &mut want);
            for (i, want) in want.chunks(320).enumerate() {
                matrix.read_row(i, &mut row);
                assert_eq!(row, want, "{from} to {to}, row {i}");
            }
        }
    }
}

#[test]
fn what_cannot_be_kept_is_refused_with_the_reason() {
    let pool = Pool::new(1, 0).expect("threads start");
    let refused = |shape: &[usize], to: Format| {
        let t = HostTensor::from_f32("the.weight", shape, &vec![0.0; shape.iter().product()]).expect("whole");
        let Err(error) = Matrix::pack(&pool, &mut Shelf::default(), &t, to, Isa::Portable, Precision::Native) else {
            panic!("{shape:?} as {to} is refused")
        };
        error.to_string()
    };
    for (shape, to, part) in [
        (&[4, 33][..], Format::Q8_0, "inner dimension 33"),
        (&[4, 256], Format::Q6K, "converting the.weight from f32 to q6_k"),
        (&[32], Format::F32, "not a matrix"),
        (&[2, 2, 2], Format::F32, "not a matrix"),
        (&[0, 32], Format::F32, "empty"),
    ] {
        let message = refused(shape, to);
        assert!(message.contains("the.weight") && message.contains(part), "{message}");
    }
}

struct Case {
    name: String,
    matrix: Matrix,
    /// Decoded, `[out, in]`.
    weights: Vec<f32>,
}

impl Case {
    fn inner(&self) -> usize {
        self.matrix.inner()
    }

    /// Root mean square error against the f64 product, relative to that product's.
    fn error(&self, x: &[f32], m: usize) -> f64 {
        let pool = Pool::new(2, 100).expect("threads start");
        let got = multiply(&self.matrix, &pool, x, m);
        let (mut off, mut all) = (0f64, 0f64);
        for (x, got) in x.chunks(self.inner()).zip(got.chunks(self.matrix.out())) {
            for (w, got) in self.weights.chunks(self.inner()).zip(got) {
                let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                off += (f64::from(*got) - want).powi(2);
                all += want * want;
            }
        }
        (off / all).sqrt()
    }
}

fn each_case(run: impl Fn(&Case)) {
    let pool = Pool::new(2, 100).expect("threads start");
    for isa in Isa::paths() {
        for format in Format::ALL {
            for precision in [Precision::Native, Precision::Exact] {
                for (out, inner) in SHAPES {
                    if inner % format.block_len() == 0 {
                        let mut t = tensor(format, out, inner);
                        if format == Format::Int4G32 {
                            let reversed = (0..inner as u32).rev().collect();
                            t = t.with_order(reversed).expect("each input once");
                        }
                        let matrix =
                            Matrix::pack(&pool, &mut Shelf::default(), &t, format, isa, precision).expect("packs");
                        let name = format!("{} {format} {precision:?} [{out}, {inner}]", isa.name());
                        run(&Case { name, matrix, weights: t.to_f32() });
                    }
                }
            }
        }
    }
}

fn multiply(w: &Matrix, pool: &Pool, x: &[f32], m: usize) -> Vec<f32> {
    let (mut rows, mut out) = (Rows::new(), vec![f32::NAN; m * w.out()]);
    w.pack_rows(pool, x, m, &mut rows);
    let to = Apart(out.as_mut_ptr());
    // SAFETY: `out` holds all rows; pieces have different panels.
    pool.split(w.panels(), Pool::CHUNKS, &|panels| unsafe { w.apply(&rows, panels, to, w.out()) });
    out
}

/// Random weights; formats that nothing encodes from random codes with reasonable scales.
fn tensor(format: Format, out: usize, inner: usize) -> HostTensor<'static> {
    let bytes = if format::encodes(format) {
        format::encode(format, &noise(out * inner, 1))
    } else {
        let (len, bytes) = (format.block_len(), format.block_bytes());
        let mut bytes: Vec<u8> = noise(out * inner / len * bytes, 9).iter().map(|v| (v * 1e6) as i32 as u8).collect();
        for (i, block) in bytes.chunks_mut(format.block_bytes()).enumerate() {
            for (scale, value) in format::scales(format).iter().zip([1e-3, -4e-3]) {
                scale.write(block, value * (i % 7 + 1) as f32);
            }
        }
        bytes
    };
    HostTensor::new("w", [out, inner], format, bytes).expect("whole")
}

/// The same with the first rows' weights all ones or all zeros in storage, the largest sums there are.
fn extreme(t: HostTensor<'static>) -> HostTensor<'static> {
    let mut bytes = t.bytes.into_owned();
    let row_bytes = bytes.len() / t.shape.dims()[0];
    for (i, block) in bytes[..4 * row_bytes].chunks_mut(t.format.block_bytes()).enumerate() {
        let values: Vec<f32> = format::scales(t.format).iter().map(|scale| scale.read(block)).collect();
        let signed = matches!(t.format, Format::Q8_0 | Format::Int8G32 | Format::Int8G128);
        block.fill(if signed { [0x80, 0x7f] } else { [0xff, 0] }[i % 2]);
        format::scales(t.format).iter().zip(values).for_each(|(scale, value)| scale.write(block, value));
    }
    HostTensor::new(t.name, t.shape, t.format, bytes).expect("as long as before")
}

/// Bell-shaped around zero, below 1.5.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next() + next() + next()).collect()
}
