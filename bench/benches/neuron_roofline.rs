//! Prints what Trainium and Inferentia can do at most, per instance type and bucket, beside what AWS has published. Only
//! arithmetic runs here: no device, and no figure of ours.

use dualgauge_bench::neuron::{Bucket, INSTANCES, LLAMA_70B, step};
use dualgauge_models::source::random::LlamaShape;

/// Figures of the Neuron documentation (benchmarks of SDK 2.18, tutorials of NxD Inference and vLLM, 2026): instance, model,
/// chips, batch, bytes a weight, tokens/s in all.
const PUBLISHED: [(&str, &str, f64, usize, f64, f64); 7] = [
    ("trn1.32xlarge", "8B", 16.0, 1, 1.0, 178.0),
    ("trn1.32xlarge", "8B", 16.0, 8, 1.0, 1143.0),
    ("trn1.32xlarge", "70B", 16.0, 1, 1.0, 41.0),
    ("trn1.32xlarge", "70B", 16.0, 4, 1.0, 141.0),
    ("inf2.48xlarge", "8B", 12.0, 8, 1.0, 859.0),
    ("trn2.48xlarge", "70B", 16.0, 1, 2.0, 36.0),
    ("trn2.48xlarge", "8B", 2.0, 2, 2.0, 184.0),
];

fn main() {
    let models = [("1B", LlamaShape::LLAMA_1B), ("8B", LlamaShape::LLAMA_8B), ("70B", LLAMA_70B)];
    let decode = |size, context| Bucket { prefill: false, size, context };
    let prefill = |size, context| Bucket { prefill: true, size, context };
    let buckets = [decode(1, 512), decode(1, 8192), decode(16, 2048), decode(64, 2048), prefill(512, 2048)];
    println!(
        "Bounds with all chips of the instance, bf16: nothing measured, the slower of memory and matrix engine.\n"
    );
    println!(
        "{:<16}{:<6}{:<26}{:>10}{:>12}{:>10}{:>14}",
        "instance", "model", "bucket", "GB/step", "TFLOP/step", "ms", "tokens/s"
    );
    for instance in INSTANCES {
        for (name, model) in &models {
            for bucket in buckets {
                let s = step(model, bucket, 2.0);
                let seconds = instance.bound_seconds(s, instance.chips);
                let kind = if bucket.prefill { "prefill" } else { "decode" };
                let what = format!("{kind} {}, context {}", bucket.size, bucket.context);
                let (gigabytes, teraflops) = (s.bytes / 1e9, s.flops / 1e12);
                let rate = s.tokens / seconds;
                println!(
                    "{:<16}{name:<6}{what:<26}{gigabytes:>10.2}{teraflops:>12.3}{:>10.3}{rate:>14.0}",
                    instance.name,
                    seconds * 1e3
                );
            }
        }
    }
    println!("\nPublished by AWS, beside the bound for the same chips, batch and weights (context 2048):\n");
    println!(
        "{:<16}{:<6}{:>6}{:>7}{:>14}{:>12}{:>12}{:>8}",
        "instance", "model", "chips", "batch", "bytes/weight", "published", "bound", "share"
    );
    for (place, name, chips, batch, weight_bytes, published) in PUBLISHED {
        let instance = INSTANCES.iter().find(|i| i.name == place).expect("a published figure names a listed instance");
        let model = &models.iter().find(|m| m.0 == name).expect("a published figure names a listed model").1;
        let s = step(model, decode(batch, 2048), weight_bytes);
        let bound = s.tokens / instance.bound_seconds(s, chips);
        let share = 100.0 * published / bound;
        println!(
            "{place:<16}{name:<6}{chips:>6}{batch:>7}{weight_bytes:>14}{published:>12.0}{bound:>12.0}{share:>7.0}%"
        );
    }
}
