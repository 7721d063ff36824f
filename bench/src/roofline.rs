//! Owns the limits of this machine, measured: bytes a second from memory, and operations a second of each kind of product
//! that the kernels use. What a benchmark achieves is a share of these. Knows no kernel.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Time taken since it was started: of this thread's CPU for a job of one thread, so that neighbours on a shared machine do
/// not count; of the wall for several.
pub struct Clock {
    wall: Instant,
    /// CPU time of the thread at the start, for one thread.
    thread: Option<Duration>,
}

impl Clock {
    pub fn start(threads: usize) -> Self {
        Self { thread: (threads == 1).then(thread_time), wall: Instant::now() }
    }

    pub fn taken(&self) -> Duration {
        self.thread.map_or_else(|| self.wall.elapsed(), |start| thread_time() - start)
    }
}

fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct it is given.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "every thread has a clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A kind of product. Where the machine has no instructions of a kind, the kernels use f32, and so does the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    F32,
    /// Pairs of bf16 products summed in f32.
    Bf16,
    /// Quads of 8-bit products summed in int32.
    Int8,
}

/// What `threads` threads together do at most. A multiply-add is two operations.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub threads: usize,
    /// 10^9 bytes read a second, from memory much larger than the caches.
    pub read_gb_s: f64,
    /// 10^9 operations a second.
    pub f32_gop_s: f64,
    pub bf16_gop_s: f64,
    pub int8_gop_s: f64,
}

impl Limits {
    /// Measures for about a second; the best of many short windows, as neighbours only ever slow a machine down.
    pub fn measure(threads: usize) -> Self {
        let peak = |product| {
            let run = || operations(product, ROUNDS);
            let seconds = best(threads, 60, &|| _ = black_box(run()));
            run() as f64 * threads as f64 / seconds * 1e-9
        };
        let mut memory = vec![0u64; READ_BYTES / 8];
        in_huge_pages(&mut memory);
        memory.fill(1);
        let share = memory.len() / threads;
        let next = std::sync::atomic::AtomicUsize::new(0);
        let read = best(threads, 12, &|| {
            let part = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % threads;
            black_box(sum(&memory[part * share..][..share]));
        });
        Self {
            threads,
            read_gb_s: (share * threads * 8) as f64 / read * 1e-9,
            f32_gop_s: peak(Product::F32),
            bf16_gop_s: peak(Product::Bf16),
            int8_gop_s: peak(Product::Int8),
        }
    }

    pub fn gop_s(&self, product: Product) -> f64 {
        match product {
            Product::F32 => self.f32_gop_s,
            Product::Bf16 => self.bf16_gop_s,
            Product::Int8 => self.int8_gop_s,
        }
    }

    /// Seconds that `bytes` read and `operations` done take at least.
    pub fn seconds(&self, bytes: u64, operations: u64, product: Product) -> f64 {
        (bytes as f64 / self.read_gb_s).max(operations as f64 / self.gop_s(product)) * 1e-9
    }
}

const ROUNDS: usize = 50_000;
const READ_BYTES: usize = 256 << 20;

/// Independent sums, enough to hide the latency of two units.
const CHAINS: usize = 12;

/// Seconds of the fastest of `times` runs of `job` on all threads at once.
fn best(threads: usize, times: usize, job: &(dyn Fn() + Sync)) -> f64 {
    let barrier = std::sync::Barrier::new(threads);
    let run = || {
        (0..times).fold(f64::MAX, |best, _| {
            barrier.wait();
            let clock = Clock::start(threads);
            job();
            barrier.wait();
            best.min(clock.taken().as_secs_f64())
        })
    };
    thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(run)));
        run()
    })
}

/// As the weights are kept: small pages cost a quarter of the bandwidth. Only a wish; `memory` is not touched yet.
fn in_huge_pages(memory: &mut [u64]) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on whole pages of our own memory.
    unsafe {
        let start = memory.as_mut_ptr().cast::<u8>();
        let skip = start.align_offset(HUGE_BYTES);
        let bytes = (std::mem::size_of_val(memory) - skip) / HUGE_BYTES * HUGE_BYTES;
        libc::madvise(start.add(skip).cast(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(target_os = "linux")]
const HUGE_BYTES: usize = 2 << 20;

/// Wrapping sum in eight streams of vectors.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for words in words.chunks_exact(32) {
        sums.iter_mut().zip(words).for_each(|(s, w)| *s = s.wrapping_add(*w));
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Runs `rounds` rounds of independent multiply-adds; returns the operations done.
fn operations(product: Product, rounds: usize) -> u64 {
    let lanes = lanes(product, rounds);
    (rounds * CHAINS * lanes * 2) as u64
}

/// Runs the loop; returns the products of one instruction.
#[cfg(target_arch = "x86_64")]
fn lanes(product: Product, rounds: usize) -> usize {
    let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let special = wide && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16");
    // SAFETY: each loop runs only where its instructions are.
    unsafe {
        match product {
            Product::Bf16 if special => x86::bf16_512(rounds),
            Product::Int8 if special => x86::int8_512(rounds),
            _ if wide => x86::f32_512(rounds),
            _ if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => x86::f32_256(rounds),
            _ => portable(rounds),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn lanes(_: Product, rounds: usize) -> usize {
    portable(rounds)
}

/// Multiply and add of four lanes, which any compiler turns into vectors.
fn portable(rounds: usize) -> usize {
    let mut sums = black_box([[1f32; 4]; CHAINS]);
    let x = black_box([0.5f32; 4]);
    for _ in 0..rounds {
        for sum in &mut sums {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum = if cfg!(target_arch = "aarch64") { x.mul_add(x, *sum) } else { x * x + *sum };
            }
        }
    }
    black_box(sums);
    4
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    macro_rules! chains {
        ($name:ident, $features:literal, $zero:expr, $lanes:literal, |$sum:ident, $x:ident| $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(rounds: usize) -> usize {
                let mut sums = black_box([$zero; CHAINS]);
                let $x = black_box($zero);
                for _ in 0..rounds {
                    for sum in &mut sums {
                        let $sum = *sum;
                        *sum = $step;
                    }
                }
                black_box(sums);
                $lanes
            }
        };
    }

    chains!(f32_256, "avx2,fma", _mm256_setzero_ps(), 8, |sum, x| _mm256_fmadd_ps(x, x, sum));
    chains!(f32_512, "avx512f", _mm512_setzero_ps(), 16, |sum, x| _mm512_fmadd_ps(x, x, sum));
    chains!(int8_512, "avx512f,avx512vnni", _mm512_setzero_si512(), 64, |sum, x| _mm512_dpbusd_epi32(sum, x, x));
    chains!(bf16_512, "avx512f,avx512bf16", _mm512_setzero_ps(), 32, |sum, x| {
        // SAFETY: both are 64 plain bytes.
        let x = unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
        _mm512_dpbf16_ps(sum, x, x)
    });
}
