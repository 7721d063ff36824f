//! The Responses API: bodies, events in their order, what is kept and what is not, errors.

use dualgauge_tests::http::{Connection, named_events, post, request};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, eventually, slow, with};

const PATH: &str = "/v1/responses";

fn ask(input: Value) -> Value {
    json!({"model": MODEL, "input": input, "max_output_tokens": 24, "temperature": 0})
}

fn reference(server: &Running, messages: Value) -> Value {
    let body = json!({"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": messages});
    post(server.at, "/v1/chat/completions", &body).json()
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("text in {response}"))
}

#[test]
fn a_response_has_the_shape_of_the_api() {
    let server = Running::new();
    let wanted = reference(&server, json!([{"role": "user", "content": "hello"}]));
    let asked = with(ask(json!("hello")), json!({"metadata": {"a": "b"}}));
    let body = post(server.at, PATH, &asked).json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("resp_")));
    assert_eq!((&body["object"], &body["model"], &body["error"]), (&json!("response"), &json!(MODEL), &Value::Null));
    let item = &body["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    let part = json!({"type": "output_text", "text": wanted["choices"][0]["message"]["content"], "annotations": [], "logprobs": []});
    assert_eq!(item["content"], json!([part]));
    let cut = wanted["choices"][0]["finish_reason"] == "length";
    assert_eq!(body["status"], if cut { "incomplete" } else { "completed" });
    assert_eq!(body["incomplete_details"], if cut { json!({"reason": "max_output_tokens"}) } else { Value::Null });
    let usage = &body["usage"];
    assert_eq!(usage["input_tokens"], wanted["usage"]["prompt_tokens"]);
    assert_eq!(usage["output_tokens"], wanted["usage"]["completion_tokens"]);
    assert_eq!(usage["total_tokens"], wanted["usage"]["total_tokens"]);
    assert!(
        usage["input_tokens_details"]["cached_tokens"].is_u64()
            && usage["input_tokens_details"]["cache_write_tokens"].is_u64()
    );
    assert_eq!(usage["output_tokens_details"], json!({"reasoning_tokens": 0}));
    for (field, value) in [
        ("metadata", json!({"a": "b"})),
        ("parallel_tool_calls", json!(true)),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("truncation", json!("disabled")),
        ("text", json!({"format": {"type": "text"}})),
        ("max_output_tokens", json!(24)),
        ("previous_response_id", Value::Null),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    let counted = post(server.at, "/v1/responses/input_tokens", &asked).json();
    assert_eq!(counted, json!({"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}));
    for path in ["/openai/v1/responses", "/openai/responses?api-version=1"] {
        assert_eq!(text(&post(server.at, path, &asked).json()), text(&body), "{path}");
    }
    assert_eq!(post(server.at, "/openai/responses", &asked).status, 404);
}

#[test]
fn events_come_in_their_order() {
    let server = Running::new();
    let whole = post(server.at, PATH, &ask(json!("hello"))).json();
    let events = named_events(&post(server.at, PATH, &with(ask(json!("hello")), json!({"stream": true}))));
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
    }
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let deltas = names.iter().filter(|n| **n == "response.output_text.delta").count();
    assert!(deltas > 1);
    let mut wanted =
        vec!["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"];
    wanted.extend(vec!["response.output_text.delta"; deltas]);
    let last = if whole["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
    wanted.extend(["response.output_text.done", "response.content_part.done", "response.output_item.done", last]);
    assert_eq!(names, wanted);
    let streamed: String = events.iter().filter_map(|(_, e)| e["delta"].as_str()).collect();
    assert_eq!(streamed, text(&whole));
    assert_eq!(events[0].1["response"]["status"], "in_progress");
    let done = &events[events.len() - 1].1["response"];
    assert_eq!((text(done), &done["usage"]["output_tokens"]), (text(&whole), &whole["usage"]["output_tokens"]));
    let item = &events[2].1["item"]["id"];
    assert!(events[3..events.len() - 2].iter().all(|(_, e)| e["item_id"] == *item && e["output_index"] == 0));
    assert_eq!(done["output"][0]["id"], *item);
}

#[test]
fn a_response_goes_on_from_another() {
    let server = Running::new();
    let first = with(ask(json!("one")), json!({"instructions": "be brief"}));
    let first = post(server.at, PATH, &first).json();
    let id = first["id"].as_str().expect("an id").to_owned();
    let next = with(ask(json!([{"role": "user", "content": "two"}])), json!({"previous_response_id": id}));
    let second = post(server.at, PATH, &next).json();
    // Instructions are not carried over; input and output are.
    let turns = json!([
        {"role": "user", "content": "one"}, {"role": "assistant", "content": text(&first)}, {"role": "user", "content": "two"},
    ]);
    assert_eq!(
        text(&second),
        reference(&server, turns.clone())["choices"][0]["message"]["content"].as_str().expect("text")
    );
    assert_eq!(second["previous_response_id"], id);
    // The same, told in full; a reference stands for its item.
    let parts = json!([{"type": "output_text", "text": text(&first)}]);
    let told = json!([
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "message", "role": "assistant", "content": parts},
        {"role": "user", "content": "two"},
    ]);
    assert_eq!(text(&post(server.at, PATH, &ask(told)).json()), text(&second));
    let reference = json!({"type": "item_reference", "id": first["output"][0]["id"]});
    let told = json!([{"role": "user", "content": "one"}, reference, {"role": "user", "content": "two"}]);
    assert_eq!(text(&post(server.at, PATH, &ask(told)).json()), text(&second));

    let at = |path: &str| format!("{PATH}/{path}");
    let fetch = |method: &str, path: &str| request(server.at, method, &at(path), &[], b"");
    assert_eq!(fetch("GET", &id).json(), first);
    let items = fetch("GET", &format!("{id}/input_items")).json();
    assert_eq!((&items["object"], &items["data"][0]["content"][0]["text"]), (&json!("list"), &json!("one")));
    assert_eq!((&items["first_id"], &items["has_more"]), (&items["data"][0]["id"], &json!(false)));
    assert_eq!(fetch("POST", &format!("{id}/cancel")).status, 400);
    assert_eq!(fetch("DELETE", &id).json(), json!({"id": id, "object": "response", "deleted": true}));
    for (method, path) in [
        ("GET", id.clone()),
        ("DELETE", id.clone()),
        ("GET", format!("{id}/input_items")),
        ("POST", format!("{id}/cancel")),
    ] {
        assert_eq!(fetch(method, &path).status, 404, "{method} {path}");
    }
    assert_eq!(post(server.at, PATH, &next).json()["error"]["code"], "previous_response_not_found");

    // What is not to be kept is not; a stream is.
    let unkept = post(server.at, PATH, &with(ask(json!("x")), json!({"store": false}))).json();
    assert_eq!(fetch("GET", unkept["id"].as_str().expect("an id")).status, 404);
    let events = named_events(&post(server.at, PATH, &with(ask(json!("x")), json!({"stream": true}))));
    let done = &events[events.len() - 1].1["response"];
    assert_eq!(fetch("GET", done["id"].as_str().expect("an id")).json(), *done);
}

#[test]
fn log_probabilities_come_when_asked_for() {
    let server = Running::new();
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 5});
    let whole = post(server.at, PATH, &with(ask(json!("hello")), more.clone())).json();
    let logprobs = whole["output"][0]["content"][0]["logprobs"].as_array().expect("a list").clone();
    assert!(
        !logprobs.is_empty() && logprobs.iter().all(|l| l["top_logprobs"].as_array().is_some_and(|t| t.len() == 2))
    );
    let body = with(with(ask(json!("hello")), more), json!({"stream": true}));
    let events = named_events(&post(server.at, PATH, &body));
    let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
    let streamed: Vec<Value> = deltas.flat_map(|(_, e)| e["logprobs"].as_array().expect("a list").clone()).collect();
    assert_eq!(streamed, logprobs);
}

#[test]
fn a_conversation_that_is_too_long_is_shortened_when_asked() {
    let server = Running::new();
    let words = "word ".repeat(server.context() / 4);
    let turns: Vec<Value> =
        (0..20).map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": words})).collect();
    let turns = [turns, vec![json!({"role": "user", "content": "hello"})]].concat();
    let refused = post(server.at, PATH, &ask(json!(turns)));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    let cut = post(server.at, PATH, &with(ask(json!(turns)), json!({"truncation": "auto"})));
    assert_eq!(cut.status, 200, "{}", cut.text());
    assert!(cut.json()["usage"]["input_tokens"].as_u64().is_some_and(|n| (n as usize) < server.context()));
}

#[test]
fn what_is_wrong_is_said() {
    let server = Running::new();
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": [{"role": "judge", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "user", "content": 5}]}), "input[0].content"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0].type"),
        (json!({"input": [{"type": "computer_call"}]}), "input[0].type"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}), "input[0].call_id"),
        (json!({"input": [call, {"type": "function_call_output", "call_id": "c"}]}), "input[1].output"),
        (json!({"input": [{"type": "item_reference", "id": "gone"}]}), "input[0].id"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"truncation": "some"}), "truncation"),
        (json!({"background": true}), "background"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": ""}]}), "tools[0]"),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice"),
        (json!({"tool_choice": "perhaps"}), "tool_choice"),
        (json!({"text": {"format": {"type": "yaml"}}}), "text.format.type"),
        (json!({"previous_response_id": "resp_x"}), "previous_response_id"),
    ] {
        for stream in [false, true] {
            let body = with(with(ask(json!("x")), more.clone()), json!({"stream": stream}));
            let response = post(server.at, PATH, &body);
            assert_eq!(response.status, 400, "{more}: {}", response.text());
            assert_eq!(response.json()["error"]["param"], param, "{more}: {}", response.text());
        }
    }
    let lost = post(server.at, PATH, &with(ask(json!("x")), json!({"model": "other"})));
    assert_eq!((lost.status, &lost.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn who_hangs_up_frees_the_blocks() {
    let server = Running::with(Options { null: slow(), ..Options::default() });
    let held = || server.metric_of("dualgauge_kv_blocks", "held");
    for stream in [false, true] {
        let more = json!({"stream": stream, "temperature": 1, "seed": 5, "max_output_tokens": null});
        let mut connection = Connection::open(server.at);
        connection.send("POST", PATH, &[], with(ask(json!("hello")), more).to_string().as_bytes());
        eventually("it runs", || held() > 0.0);
        drop(connection);
        eventually("it is gone", || held() == 0.0);
    }
}
