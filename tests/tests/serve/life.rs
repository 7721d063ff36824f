//! The life of a server: what operators see, many clients, hang-ups, a full queue, the orderly end, a lost device.

use std::time::{Duration, Instant};

use dualgauge_kernels::NullOptions;
use dualgauge_tests::http::{Connection, get, post, stream};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, chat, content, eventually, slow, with};

#[test]
fn operators_see_what_runs() {
    let server = Running::new();
    for path in ["/health", "/ready", "/ping"] {
        let response = get(server.at, path);
        assert_eq!((response.status, response.json()["status"].clone()), (200, json!("ready")), "{path}");
    }
    assert!(get(server.at, "/version").json()["version"].is_string());

    let models = get(server.at, "/v1/models").json();
    assert_eq!(models["object"], "list");
    let entry = &models["data"][0];
    assert_eq!((&entry["id"], &entry["object"]), (&json!(MODEL), &json!("model")));
    assert!(entry["created"].is_u64() && entry["owned_by"].is_string() && entry["max_model_len"].is_u64());
    assert_eq!(get(server.at, &format!("/v1/models/{MODEL}")).json(), *entry);
    assert_eq!(get(server.at, "/v1/models/other").json()["error"]["code"], "model_not_found");
    assert_eq!(get(server.at, "//v1//models").status, 200);

    post(server.at, "/v1/chat/completions", &chat("count me"));
    let metrics = get(server.at, "/metrics");
    assert!(metrics.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    let text = metrics.text();
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_count",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:cache_config_info",
        "dualgauge_kv_blocks",
    ] {
        assert!(text.lines().any(|l| l.starts_with(&format!("{name}{{"))), "{name} in\n{text}");
    }
    assert_eq!(server.metric("vllm:generation_tokens_total"), 24.0);
    let blocks = |state: &str| server.metric_of("dualgauge_kv_blocks", state);
    assert_eq!(blocks("free") + blocks("held") + blocks("cached"), server.metric("dualgauge_kv_blocks_total"));
    // Each bucket holds those before it, and the last one all.
    let buckets: Vec<f64> = text
        .lines()
        .filter(|l| l.starts_with("dualgauge_inter_token_seconds_bucket{"))
        .map(|l| l.rsplit(' ').next().expect("a value").parse().expect("a number"))
        .collect();
    assert!(buckets.is_sorted());
    assert_eq!(buckets.last(), Some(&server.metric("dualgauge_inter_token_seconds_count")));
    // The first token has no token before it.
    assert_eq!(buckets.last(), Some(&23.0));
}

#[test]
fn many_clients_stream_at_once() {
    let server = Running::new();
    let alone: Vec<String> = (0..4)
        .map(|i| content(&stream(server.at, "/v1/chat/completions", &streamed(&format!("client {i}"))).all()))
        .collect();
    std::thread::scope(|scope| {
        for i in 0..32 {
            let (at, wanted) = (server.at, &alone[i % 4]);
            scope.spawn(move || {
                let body = streamed(&format!("client {}", i % 4));
                let events = stream(at, "/v1/chat/completions", &body).all();
                assert_eq!(content(&events), *wanted, "client {i}");
            });
        }
    });
    eventually("all blocks are free again", || server.metric_of("dualgauge_kv_blocks", "held") == 0.0);
    assert_eq!(server.metric_of("vllm:request_success_total", "length"), 36.0);
}

#[test]
fn who_hangs_up_frees_the_blocks() {
    let server = Running::with(Options { null: slow(), max_num_seqs: 3, ..Options::default() });
    let held = || server.metric_of("dualgauge_kv_blocks", "held");
    let long = with(chat("hello"), json!({"max_tokens": null, "ignore_eos": true}));

    // In the middle of a stream.
    let mut events = stream(server.at, "/v1/chat/completions", &with(long.clone(), json!({"stream": true, "n": 3})));
    for _ in 0..8 {
        events.next();
    }
    assert!(held() > 0.0);
    drop(events);
    within_a_second("a stream that was hung up", || held() == 0.0);

    // While the whole answer is waited for.
    let mut connection = Connection::open(server.at);
    connection.send("POST", "/v1/chat/completions", &[], long.to_string().as_bytes());
    eventually("it runs", || held() > 0.0);
    drop(connection);
    within_a_second("a whole answer that was hung up", || held() == 0.0);

    // In the queue: there are three places, two taken, and two requests for the third.
    let running: Vec<_> = (0..2)
        .map(|_| stream(server.at, "/v1/chat/completions", &with(long.clone(), json!({"stream": true}))))
        .collect();
    let mut queued = Connection::open(server.at);
    queued.send("POST", "/v1/chat/completions", &[], with(long, json!({"n": 2})).to_string().as_bytes());
    eventually("it waits", || server.metric("vllm:num_requests_waiting") > 0.0);
    drop(queued);
    within_a_second("a queued request that was hung up", || server.metric("vllm:num_requests_waiting") == 0.0);
    drop(running);
    within_a_second("the rest", || held() == 0.0);
    assert_eq!(server.metric_of("vllm:request_success_total", "abort"), 8.0);
}

#[test]
fn a_full_queue_says_come_back() {
    let server = Running::with(Options { null: slow(), max_num_seqs: 2, max_queue: 2, ..Options::default() });
    let body = with(chat("hello"), json!({"max_tokens": 60, "ignore_eos": true}));
    let outcomes: Vec<(u16, Option<String>)> = std::thread::scope(|scope| {
        let (at, body) = (server.at, &body);
        let ask = move || {
            let response = post(at, "/v1/chat/completions", body);
            if response.status == 200 {
                assert_eq!(response.json()["usage"]["completion_tokens"], 60);
            }
            (response.status, response.header("retry-after").map(str::to_owned))
        };
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|t| t.join().expect("a client")).collect()
    });
    let refused: Vec<_> = outcomes.iter().filter(|(status, _)| *status == 429).collect();
    assert!(outcomes.iter().all(|(status, _)| [200, 429].contains(status)), "{outcomes:?}");
    assert!(!refused.is_empty() && refused.len() < 12, "{outcomes:?}");
    assert!(refused.iter().all(|(_, after)| after.as_ref().is_some_and(|a| a.parse::<u32>().is_ok())));
}

#[test]
fn draining_lets_the_running_finish() {
    let server = Running::with(Options { null: slow(), ..Options::default() });
    let body = with(chat("hello"), json!({"max_tokens": 60, "ignore_eos": true, "stream": true}));
    let mut events = stream(server.at, "/v1/chat/completions", &body);
    events.next();
    server.stop();
    eventually("health tells", || get(server.at, "/health").status == 503);
    assert_eq!(get(server.at, "/ready").json()["status"], "draining");
    let refused = post(server.at, "/v1/chat/completions", &chat("late"));
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true));
    assert_eq!(events.last().as_deref(), Some("[DONE]"));
    server.ended(Duration::from_secs(5));
}

#[test]
fn draining_has_an_end() {
    let server = Running::with(Options { null: slow(), drain: Duration::from_millis(200), ..Options::default() });
    let body = with(chat("hello"), json!({"max_tokens": null, "ignore_eos": true, "stream": true}));
    let mut events = stream(server.at, "/v1/chat/completions", &body);
    events.next();
    server.stop();
    let last = events.last().expect("an event");
    let error: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(error["error"]["type"], "service_unavailable", "no [DONE] after an answer that was cut off");
    server.ended(Duration::from_secs(5));
}

#[test]
fn a_lost_device_is_told() {
    let null = NullOptions { lost_after: Some(20), ..slow() };
    let server = Running::with(Options { null, ..Options::default() });
    let body = with(chat("hello"), json!({"max_tokens": 60, "ignore_eos": true, "stream": true}));
    let last = stream(server.at, "/v1/chat/completions", &body).last().expect("an event");
    let error: Value = serde_json::from_str(&last).expect("JSON");
    assert!(error["error"]["message"].is_string(), "{last}");
    eventually("health tells", || get(server.at, "/health").status == 503);
    assert_eq!(post(server.at, "/v1/chat/completions", &chat("late")).status, 503);
}

fn streamed(text: &str) -> Value {
    with(chat(text), json!({"stream": true}))
}

fn within_a_second(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    eventually(what, condition);
    assert!(begun.elapsed() < Duration::from_secs(1), "{what} took {:?}", begun.elapsed());
}
