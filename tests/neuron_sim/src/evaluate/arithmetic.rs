//! Owns the arithmetic: f32, sums in ascending order of the summed index.

use super::place::{pick, strides};
use crate::graph::Ty;
use crate::value::{Data, Value};

pub fn unary(opcode: &str) -> fn(f32) -> f32 {
    match opcode {
        "abs" => f32::abs,
        "cosine" => f32::cos,
        "erf" => erf,
        "exponential" => f32::exp,
        "log" => f32::ln,
        "logistic" => |x| 1.0 / (1.0 + (-x).exp()),
        "negate" => |x| -x,
        "rsqrt" => |x| 1.0 / x.sqrt(),
        "sine" => f32::sin,
        "tanh" => f32::tanh,
        other => unreachable!("the verifier refuses {other}"),
    }
}

pub fn binary(opcode: &str, a: &Value, b: &Value) -> Data {
    fn zip<T: Copy>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> Vec<T> {
        a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
    }
    match &a.data {
        Data::Float(_) => {
            let f: fn(f32, f32) -> f32 = match opcode {
                "add" => |a, b| a + b,
                "divide" => |a, b| a / b,
                "maximum" => maximum,
                "minimum" => minimum,
                "multiply" => |a, b| a * b,
                "subtract" => |a, b| a - b,
                other => unreachable!("the verifier refuses {other} of floats"),
            };
            Data::Float(zip(a.floats(), b.floats(), f))
        }
        Data::Int(_) => {
            let f: fn(i32, i32) -> i32 = match opcode {
                "add" => i32::wrapping_add,
                "and" => |a, b| a & b,
                "divide" => |a, b| a.checked_div(b).unwrap_or(-1),
                "maximum" => i32::max,
                "minimum" => i32::min,
                "multiply" => i32::wrapping_mul,
                "shift-right-logical" => |a, b| ((a as u32).checked_shr(b as u32).unwrap_or(0)) as i32,
                "subtract" => i32::wrapping_sub,
                other => unreachable!("the verifier refuses {other} of integers"),
            };
            Data::Int(zip(a.ints(), b.ints(), f))
        }
        Data::Pred(_) => Data::Pred(zip(a.preds(), b.preds(), |a, b| a & b)),
    }
}

pub fn compare(direction: &str, a: &Value, b: &Value) -> Vec<bool> {
    fn by<T: PartialOrd>(direction: &str, a: &[T], b: &[T]) -> Vec<bool> {
        let f: fn(&T, &T) -> bool = match direction {
            "EQ" => |a, b| a == b,
            "NE" => |a, b| a != b,
            "LT" => |a, b| a < b,
            "LE" => |a, b| a <= b,
            "GT" => |a, b| a > b,
            _ => |a, b| a >= b,
        };
        a.iter().zip(b).map(|(a, b)| f(a, b)).collect()
    }
    match &a.data {
        Data::Float(_) => by(direction, a.floats(), b.floats()),
        Data::Int(_) => by(direction, a.ints(), b.ints()),
        Data::Pred(_) => by(direction, a.preds(), b.preds()),
    }
}

pub fn select(which: &[bool], yes: &Value, no: &Value) -> Data {
    fn pick<T: Copy>(which: &[bool], yes: &[T], no: &[T]) -> Vec<T> {
        which.iter().zip(yes.iter().zip(no)).map(|(w, (y, n))| if *w { *y } else { *n }).collect()
    }
    match &yes.data {
        Data::Float(_) => Data::Float(pick(which, yes.floats(), no.floats())),
        Data::Int(_) => Data::Int(pick(which, yes.ints(), no.ints())),
        Data::Pred(_) => Data::Pred(pick(which, yes.preds(), no.preds())),
    }
}

pub fn convert(x: &Value, to: Ty) -> Data {
    let float = to.is_float();
    match (&x.data, to) {
        (Data::Float(v), _) if float => Data::Float(v.clone()),
        (Data::Int(v), _) if float => Data::Float(v.iter().map(|v| *v as f32).collect()),
        (Data::Pred(v), _) if float => Data::Float(v.iter().map(|v| f32::from(u8::from(*v))).collect()),
        (Data::Float(v), Ty::S32) => Data::Int(v.iter().map(|v| *v as i32).collect()),
        (Data::Pred(v), Ty::S32) => Data::Int(v.iter().map(|v| i32::from(*v)).collect()),
        (Data::Float(v), _) => Data::Pred(v.iter().map(|v| *v != 0.0).collect()),
        (Data::Int(v), Ty::Pred) => Data::Pred(v.iter().map(|v| *v != 0).collect()),
        (data, _) => data.clone(),
    }
}

/// Batches, left rest, right rest.
pub fn dot(numbers: &[Vec<usize>; 4], a: &Value, b: &Value) -> Vec<f32> {
    let [left_sum, right_sum, left_batch, right_batch] = numbers;
    // Both as [batch, rest, sum], rows contiguous.
    let order = |x: &Value, sum: &[usize], batch: &[usize]| {
        let (dims, from) = (&x.shape.dims, strides(&x.shape.dims));
        let rest: Vec<usize> = (0..dims.len()).filter(|d| !sum.contains(d) && !batch.contains(d)).collect();
        let all = [batch, &rest, sum].concat();
        let by: Vec<usize> = all.iter().map(|d| from[*d]).collect();
        let sizes: Vec<usize> = all.iter().map(|d| dims[*d]).collect();
        let product = |of: &[usize]| of.iter().map(|d| dims[*d]).product::<usize>();
        (pick(x.floats(), &sizes, &by, 0), product(batch), product(&rest), product(sum))
    };
    let (left, batches, rows, inner) = order(a, left_sum, left_batch);
    let (right, _, columns, _) = order(b, right_sum, right_batch);
    let mut out = Vec::with_capacity(batches * rows * columns);
    for batch in 0..batches {
        let right = &right[batch * columns * inner..][..columns * inner];
        for row in 0..rows {
            let left = &left[(batch * rows + row) * inner..][..inner];
            let mut fours = right.chunks_exact(4 * inner);
            for four in &mut fours {
                // Four chains at a time; each sums in its own order.
                let (w, rest) = four.split_at(inner);
                let (x, rest) = rest.split_at(inner);
                let (y, z) = rest.split_at(inner);
                let mut sums = [0.0; 4];
                for k in 0..inner {
                    let l = left[k];
                    sums[0] += l * w[k];
                    sums[1] += l * x[k];
                    sums[2] += l * y[k];
                    sums[3] += l * z[k];
                }
                out.extend(sums);
            }
            let single = fours.remainder().chunks_exact(inner);
            out.extend(single.map(|w| left.iter().zip(w).fold(0.0, |sum, (l, w)| sum + l * w)));
        }
    }
    out
}

pub fn reduce(opcode: &str, x: &Value, start: &Value, dim: usize) -> Data {
    let dims = &x.shape.dims;
    let (mut order, mut by) = (dims.clone(), strides(dims));
    let (len, stride) = (order.remove(dim), by.remove(dim));
    order.push(len);
    by.push(stride);
    match &x.data {
        Data::Float(v) => {
            let f: fn(f32, f32) -> f32 = match opcode {
                "add" => |a, b| a + b,
                "maximum" => maximum,
                _ => minimum,
            };
            let rows = pick(v, &order, &by, 0);
            Data::Float(rows.chunks_exact(len).map(|r| r.iter().fold(start.floats()[0], |a, b| f(a, *b))).collect())
        }
        Data::Int(v) => {
            let f: fn(i32, i32) -> i32 = match opcode {
                "add" => i32::wrapping_add,
                "maximum" => i32::max,
                _ => i32::min,
            };
            let rows = pick(v, &order, &by, 0);
            Data::Int(rows.chunks_exact(len).map(|r| r.iter().fold(start.ints()[0], |a, b| f(a, *b))).collect())
        }
        Data::Pred(_) => unreachable!("the verifier refuses reductions of predicates"),
    }
}

/// Not a number stays not a number, unlike `f32::max`.
fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

fn minimum(a: f32, b: f32) -> f32 {
    if a.is_nan() || a < b { a } else { b }
}

/// 2/sqrt(pi) times the integral of exp(-t^2): the series x - x^3/3 + x^5/10 ..., 1 beyond what f32 can tell from it.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    if x.abs() > 4.0 {
        return x.signum() as f32;
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    (sum * std::f64::consts::FRAC_2_SQRT_PI) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the tables in Abramowitz and Stegun.
    #[test]
    fn error_function() {
        for (x, want) in [(0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (-1.0, -0.842_700_8), (9.0, 1.0)]
        {
            assert!((erf(x) - want).abs() < 2e-7, "{x}");
        }
    }
}
