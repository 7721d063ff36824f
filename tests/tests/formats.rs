//! Storage formats against golden blocks of ggml's own decoder, and encoding against what rounding promises.

use dualgauge_kernels::{Format, format};
use dualgauge_tests::Random;

/// Blocks and values from ggml's own decoder. Formats of one product are exact; a multiply and an add may round apart.
#[test]
fn formats_decode_as_the_goldens_say() {
    use Format as F;
    let exact = [F::Q8_0, F::Q4_0, F::Q5_0, F::Iq4Nl];
    let rounded = [F::Q4_1, F::Q5_1, F::Q2K, F::Q3K, F::Q4K, F::Q5K, F::Q6K, F::Iq4Xs];
    let cases = exact.map(|f| (f, 0.0)).into_iter().chain(rounded.map(|f| (f, 1e-6)));
    for (format, relative) in cases {
        let name = format.name();
        let path = format!("{}/fixtures/quant/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).expect("the fixture is there");
        let golden: serde_json::Value = serde_json::from_str(&text).expect("the fixture is JSON");
        let hex = golden["hex"].as_str().expect("hex");
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect();
        let wanted = golden["expected_f32"].as_array().expect("values").iter();
        let wanted: Vec<f32> = wanted.map(|v| v.as_f64().expect("a number") as f32).collect();
        assert_eq!(golden["block_bytes"], format.block_bytes(), "{name}: bytes of a block");
        assert_eq!(golden["block_values"], format.block_len(), "{name}: values of a block");
        let mut held = vec![0.0; wanted.len()];
        format::decode(format, &bytes, &mut held);
        for (i, (h, w)) in held.iter().zip(&wanted).enumerate() {
            assert!((h - w).abs() <= relative * w.abs(), "{name}: value {i} is {h:e}, the golden says {w:e}");
        }
    }
}

/// What is encoded comes back within half a step of its block's grid.
#[test]
fn encoding_rounds_to_the_nearest() {
    let mut random = Random::new(11);
    let values = random.normals(4096, 1.0);
    for (format, steps) in [(Format::Q8_0, 127.0), (Format::Q4_0, 8.0), (Format::Q4_1, 15.0)] {
        let mut back = vec![0.0; values.len()];
        format::decode(format, &format::encode(format, &values), &mut back);
        for (block, (held, wanted)) in back.chunks(32).zip(values.chunks(32)).enumerate() {
            let (low, high) = wanted.iter().fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
            let range = if format == Format::Q4_1 { high - low } else { high.max(-low) };
            // The scale itself is an f16; q4_0 has one step less on one side.
            let (step, whole) = (range / steps, range * 1e-3);
            let allowed = if format == Format::Q4_0 { step } else { step / 2.0 } * 1.01 + whole;
            let worst = held.iter().zip(wanted).map(|(h, w)| (h - w).abs()).fold(0.0, f32::max);
            assert!(worst <= allowed, "{format}: block {block} is off by {worst}, a step is {step}");
        }
    }
    for (format, relative) in [(Format::F32, 0.0), (Format::F16, 2f32.powi(-11)), (Format::Bf16, 2f32.powi(-8))] {
        let mut back = vec![0.0; values.len()];
        format::decode(format, &format::encode(format, &values), &mut back);
        let off = back.iter().zip(&values).position(|(h, w)| (h - w).abs() > relative * w.abs() + 1e-7 * relative);
        assert_eq!(off, None, "{format}: index of a value that was not rounded to the nearest");
    }
}

/// The grid of the largest value, rounded to the nearest, bounds the error of every q4_0 block; most are well below it.
#[test]
fn q4_0_is_never_worse_than_the_grid_of_the_largest_value() {
    let mut random = Random::new(12);
    let mut values = random.normals(32 * 512, 1.0);
    values.iter_mut().step_by(97).for_each(|v| *v *= 4.0);
    let mut back = vec![0.0; values.len()];
    format::decode(Format::Q4_0, &format::encode(Format::Q4_0, &values), &mut back);
    let error =
        |held: &[f32], wanted: &[f32]| -> f64 { held.iter().zip(wanted).map(|(h, w)| f64::from(h - w).powi(2)).sum() };
    let (mut all, mut bound) = (0.0, 0.0);
    for (held, wanted) in back.chunks(32).zip(values.chunks(32)) {
        let largest = wanted.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        let scale = largest / -8.0;
        let plain: Vec<f32> = wanted.iter().map(|v| (v / scale).round().clamp(-8.0, 7.0) * scale).collect();
        let (own, plain) = (error(held, wanted), error(&plain, wanted));
        assert!(own <= plain * 1.001 + 1e-9, "{own} is worse than {plain}: {wanted:?}");
        (all, bound) = (all + own, bound + plain);
    }
    assert!(all < 0.95 * bound, "{all} of {bound}");
}
