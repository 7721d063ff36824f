//! The Anthropic API: what the contract of its SDK says about bodies, events, stops, counts and errors.

use dualgauge_tests::http::{Connection, get, named_events, post, request};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, eventually, slow, with};

fn ask(text: &str) -> Value {
    json!({"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": text}]})
}

/// What the OpenAI API answers to the same messages: the engine below is one.
fn reference(server: &Running, messages: Value) -> String {
    let body = json!({"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": messages});
    let answer = post(server.at, "/v1/chat/completions", &body).json();
    answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

#[test]
fn a_message_has_the_shape_of_the_api() {
    let server = Running::new();
    let response = post(server.at, "/v1/messages", &ask("hello"));
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.header("request-id").is_some_and(|id| !id.is_empty()));
    let body = response.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
    assert_eq!((&body["type"], &body["role"], &body["model"]), (&json!("message"), &json!("assistant"), &json!(MODEL)));
    let text = reference(&server, json!([{"role": "user", "content": "hello"}]));
    assert_eq!(body["content"], json!([{"type": "text", "text": text}]));
    assert!(["end_turn", "max_tokens"].contains(&body["stop_reason"].as_str().expect("a reason")));
    assert_eq!(body["stop_sequence"], Value::Null);
    let usage = &body["usage"];
    assert_eq!((&usage["cache_creation_input_tokens"], &usage["cache_read_input_tokens"]), (&json!(0), &json!(0)));

    let counted =
        post(server.at, "/v1/messages/count_tokens", &json!({"model": MODEL, "messages": ask("hello")["messages"]}));
    assert_eq!(counted.json(), json!({"input_tokens": usage["input_tokens"]}));
    // The prefix is cached by now and counts as before.
    assert_eq!(post(server.at, "/v1/messages", &ask("hello")).json()["usage"], *usage);
    // The same API below the path of a cloud.
    assert_eq!(post(server.at, "/anthropic/v1/messages", &ask("hello")).json()["content"], body["content"]);
}

#[test]
fn turns_become_the_prompt_they_mean() {
    let server = Running::new();
    let chat = json!([
        {"role": "system", "content": "be brief\nand kind"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]);
    let body = with(
        ask(""),
        json!({
            "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "and kind"}],
            "messages": [
                {"role": "user", "content": "one"},
                {"role": "user", "content": [{"type": "text", "text": "two"}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "three"}]},
                {"role": "user", "content": "four"},
            ],
        }),
    );
    let answer = post(server.at, "/v1/messages", &body).json();
    assert_eq!(answer["content"][0]["text"], reference(&server, chat.clone()));
    let counted = post(server.at, "/tokenize", &json!({"messages": chat})).json()["count"].clone();
    assert_eq!(answer["usage"]["input_tokens"], counted);
}

#[test]
fn a_last_turn_of_the_assistant_begins_the_answer() {
    let server = Running::new();
    let begun = |text: &str| {
        with(
            ask(""),
            json!({"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": text}]}),
        )
    };
    let count = |body: &Value| -> u64 {
        let answer = post(server.at, "/v1/messages/count_tokens", body).json();
        answer["input_tokens"].as_u64().expect("a count")
    };
    let plain = count(&ask("hello"));
    // The template closes no turn behind it: one letter is one token more.
    assert_eq!(count(&begun("a")), plain + 1);
    let answer = post(server.at, "/v1/messages", &begun("a")).json();
    assert_eq!(answer["usage"]["input_tokens"], plain + 1);
    // A control token in it is text and ends nothing.
    assert!(count(&begun("<|im_end|></s>")) > plain + 2);
}

#[test]
fn events_come_in_their_order() {
    let server = Running::new();
    let whole = post(server.at, "/v1/messages", &ask("hello")).json();
    let response = post(server.at, "/v1/messages", &with(ask("hello"), json!({"stream": true})));
    assert!(response.header("content-type").is_some_and(|t| t.starts_with("text/event-stream")));
    let events = named_events(&response);
    assert!(events.iter().all(|(name, data)| data["type"] == *name));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let deltas = names.iter().filter(|n| **n == "content_block_delta").count();
    assert!(deltas > 1);
    let mut wanted = vec!["message_start", "content_block_start"];
    wanted.extend(vec!["content_block_delta"; deltas]);
    wanted.extend(["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(names, wanted);

    let start = &events[0].1["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(start["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    assert_eq!(events[1].1["content_block"], json!({"type": "text", "text": ""}));
    let text: String = events.iter().filter_map(|(_, e)| e["delta"]["text"].as_str()).collect();
    assert_eq!(text, whole["content"][0]["text"].as_str().expect("text"));
    let delta = &events[events.len() - 2].1;
    assert_eq!(delta["delta"], json!({"stop_reason": whole["stop_reason"], "stop_sequence": null}));
    assert_eq!(delta["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
}

#[test]
fn stops_are_told_apart() {
    let server = Running::new();
    let full = post(server.at, "/v1/messages", &ask("hello")).json()["content"][0]["text"].clone();
    let full = full.as_str().expect("text");
    let stop: String = full.chars().skip(4).take(3).collect();
    let body = with(ask("hello"), json!({"stop_sequences": ["never to be seen", stop]}));
    let answer = post(server.at, "/v1/messages", &body).json();
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let wanted = &full[..full.find(&stop).expect("it is there")];
    assert_eq!(answer["content"][0]["text"], wanted);
    let events = named_events(&post(server.at, "/v1/messages", &with(body, json!({"stream": true}))));
    assert_eq!(events[events.len() - 2].1["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": stop}));

    let short = post(server.at, "/v1/messages", &with(ask("hello"), json!({"max_tokens": 2}))).json();
    assert_eq!((&short["stop_reason"], &short["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(2)));
}

#[test]
fn what_is_wrong_is_said_in_the_apis_words() {
    let server = Running::with(Options { keys: &["secret"], ..Options::default() });
    let send = |path: &str, key: &str, body: &str| {
        request(server.at, "POST", path, &[("x-api-key", key), ("content-type", "application/json")], body.as_bytes())
    };
    let long = "word ".repeat(server.context() * 4);
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]}]);
    let lost_result =
        json!([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]}]);
    let call = json!({"type": "tool_use", "id": "x", "name": "f", "input": {}});
    let unanswered = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": [call]}, {"role": "user", "content": "b"},
    ]);
    let bad = [
        json!({"messages": []}),
        json!({"messages": "hello"}),
        json!({"messages": [{"role": "system", "content": "x"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": 5}]}),
        json!({"messages": image}),
        json!({"messages": lost_result}),
        json!({"messages": unanswered}),
        json!({"messages": [{"role": "user", "content": long}]}),
        json!({"max_tokens": null}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": "many"}),
        json!({"temperature": 1.5}),
        json!({"top_p": -1}),
        json!({"stop_sequences": [""]}),
        json!({"model": null}),
        json!({"thinking": {"type": "maybe"}}),
        json!({"tool_choice": {"type": "any"}}),
        json!({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}}),
        json!({"tools": [{"name": "f"}, {"name": "f"}]}),
        json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        json!({"output_config": {"format": {"type": "yaml"}}}),
    ];
    let cases = bad.into_iter().map(|more| (with(ask("hello"), more).to_string(), 400, "invalid_request_error"));
    let cases = cases.chain([
        ("{".to_owned(), 400, "invalid_request_error"),
        ("[]".to_owned(), 400, "invalid_request_error"),
        (with(ask("hello"), json!({"model": "other"})).to_string(), 404, "not_found_error"),
    ]);
    for (body, status, kind) in cases {
        for stream in [false, true] {
            let body = if stream { body.replacen('{', "{\"stream\": true,", 1) } else { body.clone() };
            let response = send("/v1/messages", "secret", &body);
            let shown = &body[..body.len().min(300)];
            assert_eq!(response.status, status, "{shown}: {}", response.text());
            let error = response.json();
            assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{shown}");
            assert!(error["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{shown}");
            assert_eq!(error["request_id"].as_str(), response.header("request-id"), "{shown}");
        }
    }
    let unauthorized = send("/v1/messages", "wrong", &ask("hello").to_string());
    assert_eq!((unauthorized.status, &unauthorized.json()["error"]["type"]), (401, &json!("authentication_error")));
    let lost = request(server.at, "POST", "/v1/messages/x", &[("x-api-key", "secret")], b"{}");
    assert_eq!((lost.status, &lost.json()["error"]["type"]), (404, &json!("not_found_error")));
    let method = request(server.at, "GET", "/v1/messages", &[("x-api-key", "secret")], b"");
    assert_eq!((method.status, &method.json()["type"]), (405, &json!("error")));
    let huge = vec![b' '; 17 << 20];
    let large = request(server.at, "POST", "/v1/messages", &[("x-api-key", "secret")], &huge);
    assert_eq!((large.status, &large.json()["error"]["type"]), (413, &json!("request_too_large")));
}

#[test]
fn models_answer_by_the_header() {
    let server = Running::new();
    let version = [("anthropic-version", "2023-06-01")];
    let list = request(server.at, "GET", "/v1/models", &version, b"").json();
    let entry = &list["data"][0];
    assert_eq!((&entry["type"], &entry["id"], &entry["lifecycle"]), (&json!("model"), &json!(MODEL), &json!("active")));
    assert_eq!(entry["max_input_tokens"], server.context());
    let created = entry["created_at"].as_str().expect("a time");
    assert!(created.len() == 27 && created.ends_with('Z') && created.as_bytes()[10] == b'T', "{created}");
    assert_eq!((&list["has_more"], &list["first_id"], &list["last_id"]), (&json!(false), &json!(MODEL), &json!(MODEL)));
    let path = format!("/v1/models/{MODEL}");
    assert_eq!(request(server.at, "GET", &path, &version, b"").json(), *entry);
    assert_eq!(get(server.at, "/anthropic/v1/models").json(), list);
    let lost = request(server.at, "GET", "/v1/models/other", &version, b"");
    assert_eq!((lost.status, &lost.json()["error"]["type"]), (404, &json!("not_found_error")));
}

#[test]
fn who_hangs_up_frees_the_blocks() {
    let server = Running::with(Options { null: slow(), ..Options::default() });
    let held = || server.metric_of("dualgauge_kv_blocks", "held");
    for stream in [false, true] {
        let body =
            with(ask("hello"), json!({"max_tokens": server.context(), "stream": stream, "seed": 5, "temperature": 1}));
        let mut connection = Connection::open(server.at);
        connection.send("POST", "/v1/messages", &[], body.to_string().as_bytes());
        eventually("it runs", || held() > 0.0);
        drop(connection);
        eventually("it is gone", || held() == 0.0);
    }
}
