//! Chat completions: shapes, streams, choices, log-probabilities, stops.

use std::collections::HashSet;

use dualgauge_tests::http::{post, stream};
use serde_json::{Value, json};

use crate::server::{MODEL, Running, chat, content, with};

#[test]
fn a_chat_has_the_shape_of_the_api() {
    let server = Running::new();
    let response = post(server.at, "/v1/chat/completions", &chat("hello"));
    assert_eq!(response.status, 200);
    let body = response.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!(MODEL)));
    assert!(body["created"].as_u64().is_some_and(|t| t > 1_700_000_000));
    let choice = &body["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert!(choice["logprobs"].is_null());
    let message = &choice["message"];
    assert_eq!(message["role"], "assistant");
    assert!(message["content"].as_str().is_some_and(|t| !t.is_empty()));
    assert!(message.as_object().is_some_and(|m| m["refusal"].is_null()));
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    let count = post(server.at, "/tokenize", &json!({"messages": chat("hello")["messages"]})).json()["count"].clone();
    assert_eq!(usage["prompt_tokens"], count);
    assert_eq!(usage["total_tokens"].as_u64(), count.as_u64().map(|n| n + 24));

    // Another request has another identifier, and the same text.
    let again = post(server.at, "/v1/chat/completions", &chat("hello")).json();
    assert_ne!(again["id"], body["id"]);
    assert_eq!(again["choices"][0]["message"], *message);
}

#[test]
fn messages_mean_the_same_in_every_form() {
    let server = Running::new();
    let count = |messages: Value| {
        let response = post(server.at, "/tokenize", &json!({"messages": messages}));
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()["tokens"].clone()
    };
    let text = count(json!([{"role": "user", "content": "one\ntwo"}]));
    assert_eq!(count(json!([{"role": "user", "content": [{"type": "text", "text": "one\ntwo"}]}])), text);
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    assert_eq!(count(json!([{"role": "user", "content": parts}])), text);
    let system = count(json!([{"role": "system", "content": "be brief"}]));
    assert_eq!(count(json!([{"role": "developer", "content": "be brief"}])), system);
    let null = count(json!([{"role": "assistant", "content": null}]));
    assert_eq!(count(json!([{"role": "assistant", "content": ""}])), null);
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Running::new();
    let body = with(chat("hello"), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let whole = post(server.at, "/v1/chat/completions", &chat("hello")).json();
    let events = stream(server.at, "/v1/chat/completions", &body);
    assert!(events.header("content-type").is_some_and(|t| t.starts_with("text/event-stream")));
    let events = events.all();
    let (last, chunks) = events.split_last().expect("events");
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!((&event["id"], &event["created"]), (&events[0]["id"], &events[0]["created"]));
        assert_eq!(event["model"], MODEL);
    }
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &without_cache(&whole["usage"], &last["usage"])));
    assert!(chunks.iter().all(|c| c.as_object().is_some_and(|c| c["usage"].is_null())));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks[1..].iter().all(|c| c["choices"][0]["delta"]["role"].is_null()));
    let (end, pieces) = chunks.split_last().expect("chunks");
    assert_eq!(end["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
    assert!(pieces.iter().all(|c| c["choices"][0]["finish_reason"].is_null()));
    assert_eq!(content(pieces), whole["choices"][0]["message"]["content"].as_str().expect("text"));

    // Without the option there is no usage anywhere.
    let plain = stream(server.at, "/v1/chat/completions", &with(chat("hello"), json!({"stream": true}))).all();
    assert!(plain.iter().all(|c| c.get("usage").is_none() && c["choices"][0].is_object()));
}

#[test]
fn choices_differ_and_repeat() {
    let server = Running::new();
    let body = with(chat("hello"), json!({"n": 5, "temperature": 1, "seed": 7, "max_tokens": 12}));
    let texts = |response: &Value| -> Vec<String> {
        let choices = response["choices"].as_array().expect("choices");
        assert!(choices.iter().enumerate().all(|(i, c)| c["index"] == i));
        choices.iter().map(|c| c["message"]["content"].as_str().expect("text").to_owned()).collect()
    };
    let first = post(server.at, "/v1/chat/completions", &body).json();
    let five = texts(&first);
    assert_eq!(five.iter().collect::<HashSet<_>>().len(), 5, "{five:?}");
    assert_eq!(first["usage"]["completion_tokens"], 60);
    let count = post(server.at, "/tokenize", &json!({"messages": chat("hello")["messages"]})).json()["count"].clone();
    assert_eq!(first["usage"]["prompt_tokens"], count);
    assert_eq!(texts(&post(server.at, "/v1/chat/completions", &body).json()), five);

    // One choice alone is the first of five; a stream mixes them but each says the same.
    let one = post(server.at, "/v1/chat/completions", &with(body.clone(), json!({"n": 1}))).json();
    assert_eq!(texts(&one), five[..1]);
    let events = stream(server.at, "/v1/chat/completions", &with(body.clone(), json!({"stream": true}))).all();
    for (i, text) in five.iter().enumerate() {
        let own: Vec<Value> = events.iter().filter(|e| e["choices"][0]["index"] == i).cloned().collect();
        assert_eq!(content(&own), *text);
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(own.last().expect("an end")["choices"][0]["finish_reason"], "length");
    }

    // No seed: not the same twice. Two texts of 12 random tokens do not agree by chance.
    let free = with(body, json!({"seed": null, "n": 1}));
    let two = [(); 2].map(|()| texts(&post(server.at, "/v1/chat/completions", &free).json()));
    assert_ne!(two[0], two[1]);
}

#[test]
fn chat_logprobs_are_complete() {
    let server = Running::new();
    let body = with(chat("hello"), json!({"logprobs": true, "top_logprobs": 3}));
    let whole = post(server.at, "/v1/chat/completions", &body).json();
    let choice = &whole["choices"][0];
    let content_logprobs = choice["logprobs"]["content"].as_array().expect("content").clone();
    assert_eq!(content_logprobs.len(), 24);
    let mut bytes = vec![];
    for token in &content_logprobs {
        let top = token["top_logprobs"].as_array().expect("the best");
        assert_eq!(top.len(), 3);
        let values: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().expect("a number")).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values.iter().all(|v| *v <= 0.0), "{values:?}");
        // Greedy: the token is the best.
        assert_eq!((&token["token"], &token["logprob"]), (&top[0]["token"], &top[0]["logprob"]));
        let own: Vec<u8> = serde_json::from_value(token["bytes"].clone()).expect("bytes");
        assert_eq!(String::from_utf8_lossy(&own), token["token"].as_str().expect("a token"));
        bytes.extend(own);
    }
    assert_eq!(String::from_utf8_lossy(&bytes), choice["message"]["content"].as_str().expect("text"));

    let events = stream(server.at, "/v1/chat/completions", &with(body, json!({"stream": true}))).all();
    let streamed: Vec<Value> =
        events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array().cloned()).flatten().collect();
    assert_eq!(streamed, content_logprobs);

    let bare = post(server.at, "/v1/chat/completions", &with(chat("hello"), json!({"logprobs": true}))).json();
    assert_eq!(bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn token_ids_are_returned() {
    let server = Running::new();
    let body = with(chat("hello"), json!({"return_token_ids": true}));
    let whole = post(server.at, "/v1/chat/completions", &body).json();
    let ids = whole["choices"][0]["token_ids"].as_array().expect("ids").clone();
    assert_eq!(ids.len(), 24);
    let back = post(server.at, "/detokenize", &json!({"tokens": ids, "skip_special_tokens": true})).json();
    assert_eq!(back["prompt"], whole["choices"][0]["message"]["content"]);
    let prompt = post(server.at, "/tokenize", &json!({"messages": body["messages"]})).json();
    assert_eq!(whole["prompt_token_ids"], prompt["tokens"]);

    let events = stream(server.at, "/v1/chat/completions", &with(body, json!({"stream": true}))).all();
    let streamed: Vec<Value> =
        events.iter().filter_map(|e| e["choices"][0]["token_ids"].as_array().cloned()).flatten().collect();
    assert_eq!(streamed, ids);
    assert_eq!(events[0]["prompt_token_ids"], prompt["tokens"]);

    let body = json!({"prompt": "the quick", "max_tokens": 5, "temperature": 0, "return_token_ids": true});
    let whole = post(server.at, "/v1/completions", &body).json();
    assert_eq!(whole["choices"][0]["token_ids"].as_array().map(Vec::len), Some(5));
    let prompt = post(server.at, "/tokenize", &json!({"prompt": "the quick"})).json();
    assert_eq!(whole["choices"][0]["prompt_token_ids"], prompt["tokens"]);
    let bare = json!({"prompt": "the quick", "max_tokens": 5, "temperature": 0});
    assert!(post(server.at, "/v1/completions", &bare).json()["choices"][0].get("token_ids").is_none());
}

#[test]
fn stop_strings_end_the_answer_and_do_not_leak() {
    let server = Running::new();
    let ask =
        |more: Value| post(server.at, "/v1/chat/completions", &with(chat("hello"), more)).json()["choices"][0].clone();
    let full = ask(json!({}))["message"]["content"].as_str().expect("text").to_owned();
    let chars: Vec<char> = full.chars().collect();
    for (from, length) in [(3, 1), (5, 4), (chars.len() / 2, 7), (0, 2)] {
        let stop: String = chars[from..from + length].iter().collect();
        let wanted = &full[..full.find(&stop).expect("it is there")];
        let choice = ask(json!({"stop": [stop, "never to be seen"]}));
        assert_eq!(choice["message"]["content"], wanted);
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
        let body = with(chat("hello"), json!({"stop": stop, "stream": true}));
        assert_eq!(content(&stream(server.at, "/v1/chat/completions", &body).all()), wanted);
        let kept = ask(json!({"stop": stop, "include_stop_str_in_output": true}));
        assert_eq!(kept["message"]["content"], format!("{wanted}{stop}"));
    }
    let ids = ask(json!({"return_token_ids": true}))["token_ids"].clone();
    let choice = ask(json!({"stop_token_ids": [ids[4]], "return_token_ids": true}));
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &ids[4]));
    let first = ids.as_array().and_then(|all| all.iter().position(|id| *id == ids[4])).expect("it is there");
    assert_eq!(choice["token_ids"].as_array().map(Vec::len), Some(first + 1));
}

#[test]
fn lengths_are_kept() {
    let server = Running::new();
    let ask = |more: Value| post(server.at, "/v1/chat/completions", &with(chat("hello"), more)).json();
    assert_eq!(ask(json!({"max_completion_tokens": 3, "max_tokens": 9}))["usage"]["completion_tokens"], 3);
    // Without a limit the answer ends with the context at the latest.
    let free = ask(json!({"max_tokens": null, "ignore_eos": true}));
    assert_eq!(free["usage"]["total_tokens"], server.context());
    assert_eq!(free["choices"][0]["finish_reason"], "length");
    // More than is left of the context is as much as is left.
    let most = ask(json!({"max_tokens": server.context(), "ignore_eos": true}));
    assert_eq!(most["usage"]["total_tokens"], server.context());
}

/// `usage` with what `like` found in the cache, which depends on what ran before.
fn without_cache(usage: &Value, like: &Value) -> Value {
    with(usage.clone(), json!({"prompt_tokens_details": like["prompt_tokens_details"]}))
}
