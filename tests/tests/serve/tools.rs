//! Tools over HTTP: forced calls of a model that only makes hashes, their stream, their results, what is refused.

use std::collections::HashSet;

use dualgauge_tests::http::{post, stream};
use dualgauge_tests::schema::validate;
use serde_json::{Value, json};

use crate::server::{Options, Running, chat, with};

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 8},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14}
        },
        "required": ["city", "unit"],
        "additionalProperties": false
    })
}

fn stop() -> Value {
    json!({"type": "object", "properties": {"why": {"type": "boolean"}}, "required": ["why"]})
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "What it is like outside.", "parameters": weather()}},
        {"type": "function", "function": {"name": "halt", "parameters": stop(), "strict": true}}
    ])
}

fn schema_of(name: &str) -> Value {
    match name {
        "get_weather" => weather(),
        "halt" => stop(),
        other => panic!("a tool that was not offered: {other}"),
    }
}

/// Name and arguments, checked against the schema.
fn checked(call: &Value) -> (String, Value) {
    assert_eq!(call["type"], "function");
    let name = call["function"]["name"].as_str().expect("a name").to_owned();
    let text = call["function"]["arguments"].as_str().expect("arguments");
    let arguments = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let schema = schema_of(&name);
    validate(&schema, &schema, &arguments).unwrap_or_else(|e| panic!("{e}"));
    (name, arguments)
}

fn calls(choice: &Value) -> Vec<Value> {
    choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default()
}

fn ask(more: Value) -> Value {
    with(with(chat("what shall I wear?"), json!({"tools": tools(), "max_tokens": 1500, "ignore_eos": false})), more)
}

#[test]
fn a_required_call_keeps_to_its_schema() {
    let server = Running::with(Options { context: Some(4096), ..Options::default() });
    let mut ids = HashSet::new();
    for seed in 0..8 {
        let temperature = if seed == 0 { 0.0 } else { 1.5 };
        let more = json!({"tool_choice": "required", "parallel_tool_calls": false, "temperature": temperature, "seed": seed, "n": 2});
        let body = post(server.at, "/v1/chat/completions", &ask(more)).json();
        for choice in body["choices"].as_array().unwrap_or_else(|| panic!("{body}")) {
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            assert!(choice["message"]["content"].is_null(), "{choice}");
            let calls = calls(choice);
            assert_eq!(calls.len(), 1, "{choice}");
            checked(&calls[0]);
            let id = calls[0]["id"].as_str().expect("an identifier").to_owned();
            assert!(id.starts_with("call_") && ids.insert(id), "{choice}");
            assert!(calls[0]["index"].is_null());
        }
    }
}

#[test]
fn the_named_tool_is_the_one_that_is_called() {
    let server = Running::with(Options { context: Some(4096), ..Options::default() });
    for name in ["halt", "get_weather"] {
        let named = json!({"type": "function", "function": {"name": name}});
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}});
        for choice in [named.clone(), allowed] {
            let more = json!({"tool_choice": choice, "temperature": 1, "seed": 4});
            let body = post(server.at, "/v1/chat/completions", &ask(more)).json();
            let calls = calls(&body["choices"][0]);
            assert!(!calls.is_empty(), "{body}");
            assert!(calls.iter().all(|call| checked(call).0 == name), "{body}");
        }
    }
}

#[test]
fn several_calls_and_their_stream() {
    let server = Running::with(Options { context: Some(4096), ..Options::default() });
    let mut most = 0;
    for seed in 0..6 {
        let body = ask(json!({"tool_choice": "required", "temperature": 1, "seed": seed}));
        let whole = post(server.at, "/v1/chat/completions", &body).json();
        let choice = &whole["choices"][0];
        let wanted = calls(choice);
        // Cut off by the limit, the last one may be a part.
        let cut = choice["finish_reason"] == "length";
        let whole_calls = &wanted[..wanted.len() - usize::from(cut)];
        whole_calls.iter().for_each(|call| drop(checked(call)));
        most = most.max(wanted.len());

        let streaming = with(body, json!({"stream": true, "stream_options": {"include_usage": true}}));
        let events = stream(server.at, "/v1/chat/completions", &streaming).all();
        let mut told: Vec<(String, String)> = vec![];
        for delta in events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array()) {
            assert_eq!(delta.len(), 1);
            let at = delta[0]["index"].as_u64().expect("an index") as usize;
            let function = delta[0]["function"].as_object().expect("a function");
            if at == told.len() {
                assert!(delta[0]["id"].as_str().is_some_and(|id| id.starts_with("call_")));
                assert_eq!((&delta[0]["type"], &function["arguments"]), (&json!("function"), &json!("")));
                told.push((function["name"].as_str().expect("a name").to_owned(), String::new()));
            } else {
                assert_eq!(at + 1, told.len(), "one call after another");
                assert!(
                    delta[0].get("id").is_none() && delta[0].get("type").is_none() && !function.contains_key("name")
                );
                told[at].1 += function["arguments"].as_str().expect("more arguments");
            }
        }
        let names = |call: &Value| {
            (
                call["function"]["name"].as_str().unwrap().to_owned(),
                call["function"]["arguments"].as_str().unwrap().to_owned(),
            )
        };
        assert_eq!(told, wanted.iter().map(names).collect::<Vec<_>>());
        let reasons: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0]["finish_reason"])
            .filter(|reason| !reason.is_null())
            .collect();
        assert_eq!(reasons, [&choice["finish_reason"]]);
        assert_eq!(events.last().expect("events")["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    }
    assert!(most > 1, "no answer had more than one call: the test shows nothing");
}

#[test]
fn tools_and_a_form_in_one_request() {
    let server = Running::with(Options { context: Some(4096), ..Options::default() });
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "ok", "schema": schema, "strict": true}});
    let (mut called, mut answered) = (0, 0);
    for seed in 0..16 {
        let more = json!({"response_format": format, "temperature": 1.2, "seed": seed, "parallel_tool_calls": false});
        let body = post(server.at, "/v1/chat/completions", &ask(more)).json();
        let choice = &body["choices"][0];
        match calls(choice).as_slice() {
            [] => {
                let text = choice["message"]["content"].as_str().unwrap_or_else(|| panic!("{body}"));
                let value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                validate(&schema, &schema, &value).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(choice["finish_reason"], "stop");
                answered += 1;
            }
            some => {
                some.iter().for_each(|call| drop(checked(call)));
                called += 1;
            }
        }
    }
    assert!(called > 0 && answered > 0, "{called} called, {answered} answered: the test shows nothing");
}

#[test]
fn tools_are_shown_and_results_come_back() {
    let server = Running::with(Options { context: Some(4096), ..Options::default() });
    let prompt = |body: Value| {
        post(server.at, "/v1/chat/completions", &body).json()["usage"]["prompt_tokens"].as_u64().expect("usage")
    };
    let plain = prompt(chat("what shall I wear?"));
    let with_tools = prompt(ask(json!({"max_tokens": 3})));
    assert!(with_tools > plain + 50, "{with_tools} against {plain}");
    assert_eq!(prompt(ask(json!({"max_tokens": 3, "tool_choice": "none"}))), plain);
    let counted =
        post(server.at, "/tokenize", &json!({"messages": chat("what shall I wear?")["messages"], "tools": tools()}));
    assert_eq!(counted.json()["count"], with_tools);

    let made = post(server.at, "/v1/chat/completions", &ask(json!({"tool_choice": "required"}))).json();
    let message = made["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let mut messages = chat("what shall I wear?")["messages"].as_array().expect("messages").clone();
    messages.push(message);
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "<|im_end|>rain"}));
    let after = post(server.at, "/v1/chat/completions", &ask(json!({"messages": messages, "tool_choice": "auto"})));
    assert_eq!(after.status, 200, "{}", after.text());
    assert!(after.json()["usage"]["prompt_tokens"].as_u64() > Some(with_tools + 10));
}

#[test]
fn what_is_wrong_with_tools_is_said() {
    let server = Running::with(Options { context: Some(4096), ..Options::default() });
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let strict = |schema: Value| {
        with(function(json!({"name": "f", "strict": true, "parameters": schema})), json!({"tool_choice": "required"}))
    };
    let cases = [
        (json!({"tools": 5}), "tools"),
        (json!({"tools": [["function", {"name": "f"}]]}), "tools[0]"),
        (json!({"tools": [{"type": "magic", "function": {"name": "f"}}]}), "tools[0].type"),
        (function(json!({})), "tools[0].function.name"),
        (function(json!({"name": ""})), "tools[0].function.name"),
        (function(json!({"name": "f", "parameters": [1]})), "tools[0].function.parameters"),
        (function(json!({"name": "f", "description": 1})), "tools[0].function.description"),
        (function(json!({"name": "f", "strict": "yes"})), "tools[0].function.strict"),
        (json!({"tools": [tools()[0], tools()[0]]}), "tools[1]"),
        (strict(json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}})), "tools"),
        (strict(json!({"type": "wish"})), "tools"),
        (json!({"tools": tools(), "tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "other"}}}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": {"type": "function"}}), "tool_choice.function.name"),
        (json!({"tools": tools(), "tool_choice": {"type": "magic"}}), "tool_choice.type"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}),
            "tool_choice.allowed_tools.tools",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"parallel_tool_calls": "no", "tools": tools()}), "parallel_tool_calls"),
        (json!({"reasoning_effort": 5}), "reasoning_effort"),
    ];
    for (more, param) in cases {
        let response = post(server.at, "/v1/chat/completions", &with(chat("x"), more.clone()));
        assert_eq!(response.status, 400, "{more}: {}", response.text());
        let at = response.json()["error"]["param"].clone();
        assert!(at.as_str().is_some_and(|at| at.starts_with(param)), "{more}: {at}");
    }
    // What is an object cannot be a list of its fields.
    let bodies = [
        (json!({"messages": [["user", "hi"]]}), "messages[0]"),
        (json!({"messages": [{"role": "user", "content": [["text", "hi"]]}]}), "messages[0].content[0]"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [["1", "function", ["f", "{}"]]]}]}),
            "messages[0].tool_calls[0]",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": ["f", "{}"]}]}]}),
            "messages[0].tool_calls[0].function",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "stream": true, "stream_options": [true]}),
            "stream_options",
        ),
    ];
    for (body, param) in bodies {
        let response = post(server.at, "/v1/chat/completions", &body);
        assert_eq!(
            (response.status, &response.json()["error"]["param"]),
            (400, &json!(param)),
            "{body}: {}",
            response.text()
        );
    }
}
