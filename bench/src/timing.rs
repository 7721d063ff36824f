//! Owns how a kernel is timed: criterion's settings, and the best of all runs beside criterion's own statistics.

use std::time::Duration;

use criterion::{Criterion, Throughput};

/// Criterion as the kernels' benches use it: few samples, a short warm-up, the command line's filter.
pub fn criterion(measurement: Duration) -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(measurement)
        .without_plots()
        .configure_from_args()
}

/// Benches `run`, which says how long each run took. The best of all in seconds; `None` when the filter left it out.
pub fn best(
    criterion: &mut Criterion,
    group: &str,
    name: &str,
    throughput: Throughput,
    mut run: impl FnMut() -> Duration,
) -> Option<f64> {
    let mut best = None;
    let mut group = criterion.benchmark_group(group);
    group.throughput(throughput);
    group.bench_function(name, |b| {
        b.iter_custom(|times| {
            let mut total = Duration::ZERO;
            for _ in 0..times {
                let taken = run();
                best = Some(best.map_or(taken, |b: Duration| b.min(taken)));
                total += taken;
            }
            total
        });
    });
    group.finish();
    best.map(|b| b.as_secs_f64())
}
