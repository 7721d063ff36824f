//! Input that is wrong: always the client's error, always in the API's shape, always naming the field.

use dualgauge_tests::Random;
use dualgauge_tests::http::{get, post, request};
use serde_json::{Value, json};

use crate::server::{MODEL, Running, chat, eventually, with};

#[test]
fn bad_input_is_the_clients_error() {
    let server = Running::new();
    let message = |m: Value| json!({"messages": [m]});
    let user = json!([{"role": "user", "content": "x"}]);
    let mut cases: Vec<(&str, Value, u16, &str)> = vec![
        ("/v1/chat/completions", json!({}), 400, "messages"),
        ("/v1/chat/completions", json!({"messages": []}), 400, "messages"),
        ("/v1/chat/completions", json!({"messages": "x"}), 400, "messages"),
        ("/v1/chat/completions", json!({"messages": null}), 400, "messages"),
        ("/v1/chat/completions", message(json!("x")), 400, "messages[0]"),
        ("/v1/chat/completions", message(json!({"content": "x"})), 400, "messages[0]"),
        ("/v1/chat/completions", message(json!({"role": "robot", "content": "x"})), 400, "messages[0].role"),
        ("/v1/chat/completions", message(json!({"role": 5, "content": "x"})), 400, "messages[0].role"),
        ("/v1/chat/completions", message(json!({"role": "user", "content": 5})), 400, "messages[0].content"),
        ("/v1/chat/completions", message(json!({"role": "user"})), 400, "messages[0].content"),
        ("/v1/chat/completions", message(json!({"role": "user", "content": null})), 400, "messages[0].content"),
        (
            "/v1/chat/completions",
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]})),
            400,
            "messages[0].content[0].type",
        ),
        (
            "/v1/chat/completions",
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            400,
            "messages[0].content[0].text",
        ),
        ("/v1/completions", json!({}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": ""}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": []}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": ["a", ""]}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": [[]]}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": 5}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": [1, "a"]}), 400, "prompt[1]"),
        ("/v1/completions", json!({"prompt": [1, -1]}), 400, "prompt[1]"),
        ("/v1/completions", json!({"prompt": [[1], [384]]}), 400, "prompt[1][0]"),
        ("/v1/completions", json!({"prompt": [4294967297i64]}), 400, "prompt[0]"),
        ("/v1/completions", json!({"prompt": "a", "best_of": 2}), 400, "best_of"),
        ("/v1/completions", json!({"prompt": "a", "suffix": "b"}), 400, "suffix"),
        ("/v1/completions", json!({"prompt": "a", "logprobs": 21}), 400, "logprobs"),
        ("/v1/completions", json!({"prompt": "a", "logprobs": -1}), 400, "logprobs"),
        ("/v1/completions", json!({"prompt": "a", "prompt_embeds": "AAAA"}), 400, "prompt_embeds"),
        ("/v1/completions", json!({"prompt": vec!["a"; 129]}), 400, "prompt"),
        ("/v1/completions", json!({"prompt": ["a", "b"], "n": 65}), 400, "n"),
        ("/tokenize", json!({}), 400, "prompt"),
        ("/tokenize", json!({"prompt": 5}), 400, "prompt"),
        ("/detokenize", json!({"tokens": [99999]}), 400, "tokens[0]"),
    ];
    let fields = [
        ("model", json!(5), 400),
        ("model", json!("nobody"), 404),
        ("n", json!(0), 400),
        ("n", json!(-1), 400),
        ("n", json!(129), 400),
        ("n", json!(1_000_000), 400),
        ("n", json!(1.5), 400),
        ("n", json!("2"), 400),
        ("temperature", json!(-0.1), 400),
        ("temperature", json!(2.1), 400),
        ("temperature", json!(1e300), 400),
        ("temperature", json!("hot"), 400),
        ("top_p", json!(1.1), 400),
        ("top_p", json!(-1), 400),
        ("top_k", json!(-2), 400),
        ("top_k", json!(1e30), 400),
        ("min_p", json!(2), 400),
        ("repetition_penalty", json!(0), 400),
        ("repetition_penalty", json!(-1), 400),
        ("presence_penalty", json!(2.5), 400),
        ("frequency_penalty", json!(-3), 400),
        ("max_tokens", json!(0), 400),
        ("max_tokens", json!(-1), 400),
        ("max_tokens", json!(1_000_000_000_000i64), 400),
        ("max_tokens", json!(1e99), 400),
        ("max_tokens", json!("5"), 400),
        ("max_completion_tokens", json!(0), 400),
        ("min_tokens", json!(-1), 400),
        ("min_tokens", json!(100_000), 400),
        ("seed", json!("x"), 400),
        ("seed", json!(1e40), 400),
        ("stop", json!(5), 400),
        ("stop", json!(""), 400),
        ("stop", json!(["a", ""]), 400),
        ("stop", json!(vec!["a"; 17]), 400),
        ("stop_token_ids", json!([-1]), 400),
        ("stop_token_ids", json!([384]), 400),
        ("logit_bias", json!({"x": 1}), 400),
        ("logit_bias", json!({"1": 101}), 400),
        ("logit_bias", json!({"-1": 1}), 400),
        ("logit_bias", json!({"384": 1}), 400),
        ("logit_bias", json!([1]), 400),
        ("logprobs", json!("yes"), 400),
        ("top_logprobs", json!(5), 400),
        ("stream", json!("yes"), 400),
        ("stream_options", json!({"include_usage": true}), 400),
        ("ignore_eos", json!(1), 400),
        ("cache_salt", json!(""), 400),
        ("response_format", json!({"type": "poem"}), 400),
        ("response_format", json!(5), 400),
        ("guided_json", json!([]), 400),
        ("tools", json!(5), 400),
        ("tools", json!([{"type": "magic", "function": {"name": "f"}}]), 400),
        ("tools", json!([{"type": "function", "function": {}}]), 400),
        ("tool_choice", json!("required"), 400),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}}), 400),
        ("tool_choice", json!("sometimes"), 400),
        ("chat_template", json!("{{ messages }}"), 400),
        ("chat_template_kwargs", json!(5), 400),
        ("continue_final_message", json!(true), 400),
    ];
    for (field, value, status) in fields {
        cases.push(("/v1/chat/completions", json!({"messages": user, field: value}), status, field));
    }
    let many: serde_json::Map<String, Value> = (0..384).map(|i| (i.to_string(), json!(1))).collect();
    assert_eq!(post(server.at, "/v1/chat/completions", &with(chat("x"), json!({"logit_bias": many}))).status, 200);

    for (path, body, status, param) in cases {
        for stream in [false, true] {
            let body = if stream && body.get("stream_options").is_none() && body.get("stream").is_none() {
                with(body.clone(), json!({"stream": true}))
            } else {
                body.clone()
            };
            let response = post(server.at, path, &body);
            assert_eq!(response.status, status, "{path} {body}: {}", response.text());
            let error = &response.json()["error"];
            assert_eq!(error["type"], "invalid_request_error", "{body}");
            assert!(error["message"].as_str().is_some_and(|m| m.len() > 10), "{body}");
            let named = error["param"].as_str().unwrap_or_default();
            let within = |rest: &str| rest.is_empty() || (!param.is_empty() && rest.starts_with(['.', '[']));
            assert!(named.strip_prefix(param).is_some_and(within), "{body}: {error}");
        }
    }
    for text in ["", "{", "nonsense", "[]", "5", "null", "{\"messages\": NaN}", "{\"a\": 1}}", &"[".repeat(100_000)] {
        let response = request(server.at, "POST", "/v1/chat/completions", &[], text.as_bytes());
        assert_eq!(response.status, 400, "{text:.20}");
        assert!(response.json()["error"]["message"].is_string());
    }
    // Unknown fields and any content type are fine.
    let extra = with(
        chat("x"),
        json!({"user": "me", "x_y": {"deep": [1]}, "store": true, "metadata": {}, "temperature": null}),
    );
    let response = request(
        server.at,
        "POST",
        "/v1/chat/completions",
        &[("content-type", "text/plain")],
        extra.to_string().as_bytes(),
    );
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(server.metric("vllm:num_requests_running"), 0.0);
}

#[test]
fn a_prompt_over_the_context_is_refused() {
    let server = Running::new();
    let long = "word ".repeat(2 * server.context());
    for (path, body) in [
        ("/v1/completions", json!({"prompt": long})),
        ("/v1/completions", json!({"prompt": vec![5; server.context()]})),
        ("/v1/completions", json!({"prompt": ["short", long]})),
        ("/v1/chat/completions", chat(&long)),
        ("/v1/chat/completions", chat(&"x".repeat(8 << 20))),
        ("/v1/chat/completions", with(chat(&long), json!({"stream": true}))),
    ] {
        let response = post(server.at, path, &body);
        assert_eq!(
            (response.status, response.json()["error"]["code"].clone()),
            (400, json!("context_length_exceeded"))
        );
    }
    // The longest that fits leaves room for one token.
    let body = json!({"prompt": vec![5; server.context() - 1], "ignore_eos": true});
    assert_eq!(post(server.at, "/v1/completions", &body).json()["usage"]["completion_tokens"], 1);
}

#[test]
fn mutated_bodies_never_break_the_server() {
    let server = Running::new();
    let mut random = Random::new(11);
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
        "prompt": ["a", "b"], "max_tokens": 2, "n": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3,
        "stop": ["zz"], "logit_bias": {"5": 1.0}, "logprobs": null, "stream": false, "stop_token_ids": [7], "presence_penalty": 0.1,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
        "chat_template_kwargs": {"a": 1}, "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", 1]}}},
        "guided_regex": null, "echo": false, "min_tokens": 1,
    });
    let hostile = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("\u{0}\u{ffff}"),
        json!([]),
        json!({}),
        json!([[[[]]]]),
        json!(true),
        json!("a".repeat(5000)),
        json!({"type": {"type": []}}),
        json!(0.1),
    ];
    let mut accepted = 0;
    for round in 0..1500 {
        let bytes = if round % 2 == 0 {
            let mut changed = body.clone();
            for _ in 0..=random.below(2) {
                let value = hostile[random.below(hostile.len())].clone();
                replace_one(&mut changed, &mut random, value);
            }
            changed.to_string().into_bytes()
        } else {
            let mut bytes = body.to_string().into_bytes();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            bytes
        };
        let path = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"][random.below(4)];
        let response = request(server.at, "POST", path, &[], &bytes);
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        match response.status {
            200 => accepted += 1,
            400..=499 => assert!(response.json()["error"]["message"].is_string(), "{shown}"),
            status => panic!("{path} {shown}: {status} {}", response.text()),
        }
    }
    assert!(accepted > 50, "some are valid: {accepted}");
    assert_eq!(get(server.at, "/health").status, 200);
    eventually("nothing is left behind", || server.metric_of("dualgauge_kv_blocks", "held") == 0.0);
}

/// Replaces one value somewhere inside of `json`.
fn replace_one(json: &mut Value, random: &mut Random, with: Value) {
    let count = match json {
        Value::Object(fields) => fields.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    if count == 0 {
        *json = with;
        return;
    }
    let at = random.below(count);
    let inner = match json {
        Value::Object(fields) => fields.values_mut().nth(at),
        Value::Array(items) => items.get_mut(at),
        _ => None,
    };
    let inner = inner.expect("counted");
    if random.below(2) == 0 { *inner = with } else { replace_one(inner, random, with) }
}
