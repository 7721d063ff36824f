//! Owns the Prometheus text: our names, and beside them those of vLLM that routers and dashboards look for.

use std::fmt::{Display, Write};

use dualgauge::{Histogram, StartPlan, Stats};

/// All metrics as Prometheus text, version 0.0.4.
pub fn render(stats: &Stats, plan: &StartPlan, model: &str) -> String {
    let mut page = Page { text: String::with_capacity(16 << 10), model: escape(model) };
    let counters = &stats.counters;
    let used = if stats.blocks.total == 0 { 0.0 } else { stats.blocks.held as f64 / stats.blocks.total as f64 };

    page.gauge(&["dualgauge_requests_running", "vllm:num_requests_running"], "Requests in the batch.", stats.running);
    page.gauge(&["dualgauge_requests_waiting", "vllm:num_requests_waiting"], "Requests that wait.", stats.waiting);
    page.gauge(
        &["dualgauge_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"],
        "K/V blocks held, of all; 1 is full.",
        used,
    );
    page.kinds(
        "dualgauge_kv_blocks",
        "gauge",
        "K/V blocks by state.",
        "state",
        &[("free", stats.blocks.free), ("held", stats.blocks.held), ("cached", stats.blocks.cached)],
    );
    page.gauge(&["dualgauge_kv_blocks_total"], "K/V blocks that can be lent.", stats.blocks.total);
    page.gauge(&["dualgauge_kv_tokens"], "Tokens that the K/V cache holds.", plan.kv_tokens);
    page.gauge(&["dualgauge_kv_bytes"], "Bytes of the K/V cache.", plan.kv_bytes);
    page.gauge(&["dualgauge_weight_bytes"], "Bytes of the weights.", plan.weight_bytes);
    page.gauge(&["dualgauge_max_model_len"], "Most tokens of a prompt and its answer.", plan.max_model_len);

    let reasons =
        [("stop", counters.finished_stop), ("length", counters.finished_length), ("abort", counters.finished_aborted)];
    page.kinds("dualgauge_requests_finished_total", "counter", "Requests ended, by reason.", "reason", &reasons);
    page.kinds("vllm:request_success_total", "counter", "Requests ended, by reason.", "finished_reason", &reasons);
    page.counter(&["dualgauge_requests_accepted_total"], "Requests accepted.", counters.accepted);
    page.counter(&["dualgauge_requests_rejected_total"], "Requests that the engine refused.", counters.rejected);
    page.counter(&["dualgauge_requests_failed_total"], "Requests that a failed step ended.", counters.failed);
    page.counter(
        &["dualgauge_prompt_tokens_total", "vllm:prompt_tokens_total"],
        "Prompt tokens.",
        counters.prompt_tokens,
    );
    page.counter(
        &["dualgauge_generation_tokens_total", "vllm:generation_tokens_total"],
        "Tokens generated.",
        counters.generated_tokens,
    );
    page.counter(&["dualgauge_preemptions_total", "vllm:num_preemptions_total"], "Preemptions.", counters.preemptions);
    page.counter(
        &["dualgauge_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"],
        "Prompt tokens looked up in the prefix cache.",
        counters.prefix_queries,
    );
    page.counter(
        &["dualgauge_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"],
        "Prompt tokens found in the prefix cache.",
        counters.prefix_hits,
    );
    page.counter(&["dualgauge_steps_total"], "Steps of the engine.", counters.steps);
    page.counter(&["dualgauge_failed_steps_total"], "Steps that failed.", counters.failed_steps);
    page.counter(&["dualgauge_programs_compiled_total"], "Programs compiled.", counters.compiled);
    page.counter(&["dualgauge_grammar_masks_total"], "Masks of allowed tokens made for grammars.", counters.masks);
    page.counter(
        &["dualgauge_grammar_mask_microseconds_total"],
        "Time spent on masks for grammars.",
        counters.mask_microseconds,
    );

    for (names, help, histogram) in [
        (
            &["dualgauge_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"],
            "From acceptance to the first token.",
            &stats.time_to_first_token,
        ),
        (
            &["dualgauge_inter_token_seconds", "vllm:inter_token_latency_seconds"],
            "Between two tokens of a request.",
            &stats.inter_token,
        ),
        (
            &["dualgauge_request_seconds", "vllm:e2e_request_latency_seconds"],
            "From acceptance to the end.",
            &stats.end_to_end,
        ),
        (
            &["dualgauge_queue_seconds", "vllm:request_queue_time_seconds"],
            "From acceptance to the first step.",
            &stats.queue_time,
        ),
        (
            &["dualgauge_request_prompt_tokens", "vllm:request_prompt_tokens"],
            "Tokens of a prompt.",
            &stats.prompt_length,
        ),
        (
            &["dualgauge_request_generation_tokens", "vllm:request_generation_tokens"],
            "Tokens generated for a request.",
            &stats.generation_length,
        ),
    ] {
        names.iter().for_each(|name| page.histogram(name, help, histogram));
    }

    page.head("vllm:cache_config_info", "gauge", "Size of the K/V cache, in labels.");
    let _ = writeln!(
        page.text,
        "vllm:cache_config_info{{model_name=\"{}\",block_size=\"{}\",num_gpu_blocks=\"{}\"}} 1",
        page.model, plan.block_tokens, stats.blocks.total
    );
    page.text
}

struct Page {
    text: String,
    /// Escaped for a label.
    model: String,
}

// Writing to a string cannot fail.
impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn gauge(&mut self, names: &[&str], help: &str, value: impl Display) {
        names.iter().for_each(|name| self.single(name, "gauge", help, &value));
    }

    fn counter(&mut self, names: &[&str], help: &str, value: u64) {
        names.iter().for_each(|name| self.single(name, "counter", help, &value));
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: &impl Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.text, "{name}{{model_name=\"{}\"}} {value}", self.model);
    }

    fn kinds(&mut self, name: &str, kind: &str, help: &str, label: &str, values: &[(&str, impl Display)]) {
        self.head(name, kind, help);
        for (word, value) in values {
            let _ = writeln!(self.text, "{name}{{model_name=\"{}\",{label}=\"{word}\"}} {value}", self.model);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut total = 0;
        let bounds = histogram.bounds().iter().map(|b| b.to_string()).chain(["+Inf".into()]);
        for (bound, count) in bounds.zip(histogram.counts()) {
            total += count;
            let _ = writeln!(self.text, "{name}_bucket{{model_name=\"{}\",le=\"{bound}\"}} {total}", self.model);
        }
        let _ = writeln!(self.text, "{name}_sum{{model_name=\"{}\"}} {}", self.model, histogram.sum());
        let _ = writeln!(self.text, "{name}_count{{model_name=\"{}\"}} {total}", self.model);
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
