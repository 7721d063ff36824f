//! Completions: forms of the prompt, echo and its log-probabilities.

use dualgauge_tests::http::{post, stream};
use serde_json::{Value, json};

use crate::server::{MODEL, Running, with};

#[test]
fn completions_take_four_forms_of_prompt() {
    let server = Running::new();
    let ask = |prompt: Value, more: Value| {
        let body = with(json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8}), more);
        let response = post(server.at, "/v1/completions", &body);
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    };
    let texts = |body: &Value| -> Vec<String> {
        let choices = body["choices"].as_array().expect("choices");
        assert!(choices.iter().enumerate().all(|(i, c)| c["index"] == i));
        choices.iter().map(|c| c["text"].as_str().expect("text").to_owned()).collect()
    };
    let ids = |text: &str| post(server.at, "/tokenize", &json!({"prompt": text})).json()["tokens"].clone();

    let one = ask(json!("the quick"), json!({}));
    assert_eq!(one["object"], "text_completion");
    assert!(one["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let a = texts(&one);
    let b = texts(&ask(json!("brown fox"), json!({})));
    assert_ne!(a, b);
    assert_eq!(texts(&ask(ids("the quick"), json!({}))), a);
    assert_eq!(texts(&ask(json!(["the quick", "brown fox"]), json!({}))), [a.clone(), b.clone()].concat());
    assert_eq!(texts(&ask(json!([ids("brown fox"), ids("the quick")]), json!({}))), [b.clone(), a.clone()].concat());

    // Index is the prompt's place times n plus the choice's.
    let several = ask(json!(["the quick", "brown fox"]), json!({"n": 2, "best_of": 2}));
    assert_eq!(texts(&several), [a[0].clone(), a[0].clone(), b[0].clone(), b[0].clone()]);
    assert_eq!(several["usage"]["completion_tokens"], 32);
    let sum = ids("the quick").as_array().map_or(0, Vec::len) + ids("brown fox").as_array().map_or(0, Vec::len);
    assert_eq!(several["usage"]["prompt_tokens"], sum);

    // Sixteen tokens unless told otherwise.
    let body = json!({"prompt": "the quick", "temperature": 0});
    assert_eq!(post(server.at, "/v1/completions", &body).json()["usage"]["completion_tokens"], 16);

    let events = json!({"prompt": ["the quick", "brown fox"], "temperature": 0, "max_tokens": 8, "stream": true});
    let events = stream(server.at, "/v1/completions", &events).all();
    for (i, text) in [&a[0], &b[0]].into_iter().enumerate() {
        let own = events.iter().filter(|e| e["choices"][0]["index"] == i);
        let streamed: String = own.map(|e| e["choices"][0]["text"].as_str().expect("text")).collect();
        assert_eq!(streamed, *text);
    }
}

#[test]
fn completions_echo_their_prompt() {
    let server = Running::new();
    let base = json!({"prompt": "the quick", "temperature": 0, "max_tokens": 8, "logprobs": 2});
    let plain = post(server.at, "/v1/completions", &base).json();
    let echoed = post(server.at, "/v1/completions", &with(base.clone(), json!({"echo": true}))).json();
    let text = |body: &Value| body["choices"][0]["text"].as_str().expect("text").to_owned();
    assert_eq!(text(&echoed), format!("the quick{}", text(&plain)));

    let prompt = post(server.at, "/tokenize", &json!({"prompt": "the quick", "return_token_strs": true})).json();
    let count = prompt["count"].as_u64().expect("a count") as usize;
    let lists = &echoed["choices"][0]["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[name].as_array().map(Vec::len), Some(count + 8), "{name}");
        assert_eq!(plain["choices"][0]["logprobs"][name].as_array().map(Vec::len), Some(8), "{name}");
    }
    assert_eq!(lists["tokens"].as_array().map(|t| &t[..count]), prompt["token_strs"].as_array().map(Vec::as_slice));
    assert!(lists["token_logprobs"][0].is_null() && lists["top_logprobs"][0].is_null());
    assert!(
        lists["token_logprobs"].as_array().is_some_and(|l| l[1..].iter().all(|v| v.as_f64().is_some_and(|v| v <= 0.0)))
    );
    assert_eq!(
        lists["token_logprobs"].as_array().map(|l| &l[count..]),
        plain["choices"][0]["logprobs"]["token_logprobs"].as_array().map(Vec::as_slice)
    );
    let mut offset = 0;
    for (token, at) in
        lists["tokens"].as_array().expect("a list").iter().zip(lists["text_offset"].as_array().expect("a list"))
    {
        assert_eq!(at.as_u64(), Some(offset));
        offset += token.as_str().expect("a token").chars().count() as u64;
    }
    assert!(lists["top_logprobs"][count].as_object().is_some_and(|t| (2..=3).contains(&t.len())));

    // Only the prompt.
    let only = post(server.at, "/v1/completions", &with(base.clone(), json!({"echo": true, "max_tokens": 0}))).json();
    assert_eq!((text(&only), &only["usage"]["completion_tokens"]), ("the quick".into(), &json!(0)));
    assert_eq!(only["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len), Some(count));

    let streamed = stream(server.at, "/v1/completions", &with(base, json!({"echo": true, "stream": true}))).all();
    let joined: String = streamed.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(joined, text(&echoed));
    let tokens: Vec<Value> =
        streamed.iter().filter_map(|e| e["choices"][0]["logprobs"]["tokens"].as_array().cloned()).flatten().collect();
    assert_eq!(Some(&tokens), lists["tokens"].as_array());
}
