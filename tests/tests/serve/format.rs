//! Answers of a wanted form. The device's tokens are hashes, so whatever is right in an answer is the grammar's doing.

use dualgauge_tests::http::{post, stream};
use dualgauge_tests::schema::validate;
use serde_json::{Value, json};

use crate::server::{Running, chat, content, with};

/// A schema with most of what can be said, and bounds, so that any answer ends.
fn order() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["buy", "sell", null, 5]},
            "amount": {"type": "integer", "minimum": 1, "maximum": 250},
            "price": {"type": "number", "exclusiveMinimum": 0, "maximum": 9.5, "multipleOf": 0.5},
            "note": {"type": ["string", "null"], "maxLength": 6},
            "tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 3}, "minItems": 1, "maxItems": 3},
            "place": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "boolean"}]},
            "fixed": {"const": {"a": [1, 2]}}
        },
        "required": ["kind", "amount", "price", "note", "tags", "place", "fixed"],
        "additionalProperties": false,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]}},
                "required": ["x", "next"],
                "additionalProperties": false
            }
        }
    })
}

fn format(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": true}})
}

fn answer(body: &Value) -> (String, String) {
    let choice = &body["choices"][0];
    let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
    (
        text.unwrap_or_else(|| panic!("{body}")).to_owned(),
        choice["finish_reason"].as_str().expect("a reason").to_owned(),
    )
}

#[test]
fn json_keeps_to_its_schema_whatever_the_model_wants() {
    let server = Running::new();
    let schema = order();
    for seed in 0..12 {
        let temperature = if seed == 0 { 0.0 } else { 1.5 };
        let more =
            json!({"response_format": format(&schema), "temperature": temperature, "seed": seed, "max_tokens": 480});
        let body = with(chat("an order, please"), more);
        let (text, reason) = answer(&post(server.at, "/v1/chat/completions", &body).json());
        assert_eq!(reason, "stop", "it ends by itself: {text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        validate(&schema, &schema, &value).unwrap_or_else(|e| panic!("{e}"));
        let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["kind", "amount", "price", "note", "tags", "place", "fixed"], "in the schema's order");
        // A stream says the same.
        let events = stream(server.at, "/v1/chat/completions", &with(body, json!({"stream": true}))).all();
        assert_eq!(content(&events), text);
    }
    assert!(server.metric("dualgauge_grammar_masks_total") > 100.0);
}

#[test]
fn every_name_of_a_wish_is_heard() {
    let server = Running::new();
    let small = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]});
    let one_of = ["{\"a\":true}", "{\"a\":false}", "{\"a\": true}", "{\"a\": false}"];
    let cases = [
        ("guided_json", small.clone(), &one_of[..]),
        ("guided_json", json!(small.to_string()), &one_of[..]),
        ("structured_outputs", json!({"json": small}), &one_of[..]),
        ("response_format", format(&small), &one_of[..]),
        ("guided_choice", json!(["red", "greenish", "€ \"quoted\""]), &["red", "greenish", "€ \"quoted\""][..]),
        ("structured_outputs", json!({"choice": ["x", "y"]}), &["x", "y"][..]),
        ("guided_regex", json!("[ab]/\\d"), &[][..]),
        ("structured_outputs", json!({"regex": "[ab]/\\d"}), &[][..]),
        ("guided_grammar", json!("start: \"a\" b\nb: \"/\" /[0-9]/"), &[][..]),
        ("structured_outputs", json!({"grammar": "start: \"a\" b\nb: \"/\" /[0-9]/"}), &[][..]),
    ];
    for (field, wish, allowed) in cases {
        for (path, body) in [
            ("/v1/chat/completions", with(chat("go"), json!({field: wish, "max_tokens": 60}))),
            ("/v1/completions", json!({"prompt": "go", "max_tokens": 60, field: wish, "temperature": 1, "seed": 5})),
        ] {
            let response = post(server.at, path, &body);
            assert_eq!(response.status, 200, "{field}: {}", response.text());
            let (text, reason) = answer(&response.json());
            assert_eq!(reason, "stop", "{field}: {text}");
            match allowed {
                [] => {
                    let mut rest =
                        text.strip_prefix(['a', 'b']).and_then(|t| t.strip_prefix('/')).unwrap_or("").chars();
                    let digit = rest.next().is_some_and(|c| c.is_ascii_digit());
                    assert!(digit && rest.next().is_none(), "{field}: {text}");
                }
                allowed => assert!(allowed.contains(&text.as_str()), "{field}: {text}"),
            }
        }
    }
    let object = with(chat("go"), json!({"response_format": {"type": "json_object"}, "max_tokens": 40}));
    let (text, reason) = answer(&post(server.at, "/v1/chat/completions", &object).json());
    assert!(text.starts_with('{'), "{text}");
    assert!(reason == "length" || serde_json::from_str::<Value>(&text).is_ok_and(|v| v.is_object()), "{text}");
}

#[test]
fn neighbours_and_choices_change_nothing() {
    let server = Running::new();
    let schema = order();
    let body = |seed: u64| {
        let more = json!({"response_format": format(&schema), "temperature": 1, "seed": seed, "max_tokens": 400});
        with(chat("again"), more)
    };
    let alone: Vec<Value> =
        (0..4).map(|seed| post(server.at, "/v1/chat/completions", &body(seed)).json()["choices"].clone()).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                let (at, body) = (server.at, body(seed));
                scope.spawn(move || post(at, "/v1/chat/completions", &body).json()["choices"].clone())
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    assert_eq!(alone, together);
    let several = post(server.at, "/v1/chat/completions", &with(body(0), json!({"n": 3}))).json();
    assert_eq!(several["choices"][0], alone[0][0]);
    for choice in several["choices"].as_array().expect("choices") {
        let value = serde_json::from_str(choice["message"]["content"].as_str().expect("text")).expect("JSON");
        validate(&schema, &schema, &value).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn penalties_biases_and_bounds_hold_beside_a_grammar() {
    let server = Running::new();
    let more = json!({
        "guided_regex": "[a-c]{4}", "presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2,
        "min_p": 0.1, "top_k": 5, "top_p": 0.9, "temperature": 1.0, "seed": 9, "logprobs": true, "top_logprobs": 5, "min_tokens": 20,
    });
    let body = post(server.at, "/v1/chat/completions", &with(chat("go"), more)).json();
    let (text, reason) = answer(&body);
    assert!(text.len() == 4 && text.chars().all(|c| ('a'..='c').contains(&c)), "{text}");
    assert_eq!(reason, "stop");
    for token in body["choices"][0]["logprobs"]["content"].as_array().expect("log-probabilities") {
        assert!(token["logprob"].as_f64().expect("a number") <= 0.0);
    }
    let cut = with(chat("go"), json!({"guided_regex": "[a-c]{400}", "max_tokens": 3}));
    assert_eq!(answer(&post(server.at, "/v1/chat/completions", &cut).json()).1, "length");
    let stopped = with(chat("go"), json!({"guided_regex": "[a-c]{4}zz[a-c]{4}", "stop": "zz", "max_tokens": 50}));
    let (text, reason) = answer(&post(server.at, "/v1/chat/completions", &stopped).json());
    assert!(text.len() == 4 && reason == "stop", "{text}");
}

#[test]
fn what_cannot_be_kept_to_is_refused_by_name() {
    let server = Running::new();
    let strict = |schema: Value| json!({"response_format": format(&schema)});
    let deep = (0..100).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    let cases = [
        (strict(json!({"type": "array", "uniqueItems": true})), "response_format", "uniqueItems"),
        (strict(json!({"not": {"type": "string"}})), "response_format", "not"),
        (strict(json!({"if": {"type": "string"}, "then": {"minLength": 1}})), "response_format", "if"),
        (strict(json!({"type": "string", "format": "poem"})), "response_format", "poem"),
        (strict(json!({"type": "wish"})), "response_format", "wish"),
        (strict(json!({"$ref": "https://example.com/schema.json"})), "response_format", "$ref"),
        (strict(json!({"$ref": "#/$defs/none"})), "response_format", "none"),
        (strict(json!({"type": "string", "pattern": "(?=a)b"})), "response_format", ""),
        (strict(json!({"type": "string", "minLength": 5, "maxLength": 2})), "response_format", ""),
        (strict(deep), "response_format", "deep"),
        (json!({"guided_json": {"enum": ["x".repeat(600_000)]}}), "guided_json", "bytes"),
        (json!({"guided_json": 5}), "guided_json", "schema"),
        (json!({"guided_regex": "(a"}), "guided_regex", ""),
        (json!({"guided_regex": 5}), "guided_regex", "string"),
        (json!({"guided_choice": []}), "guided_choice", "list"),
        (json!({"guided_choice": ["a", 5]}), "guided_choice", "list"),
        (json!({"guided_grammar": "root ::= \"a\""}), "guided_grammar", "Lark"),
        (json!({"guided_grammar": "start: b"}), "guided_grammar", "b"),
        (json!({"structured_outputs": 5}), "structured_outputs", "object"),
        (json!({"structured_outputs": {"json": 5}}), "structured_outputs.json", "schema"),
        (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex", "one form"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
            "schema",
        ),
    ];
    for (more, param, names) in cases {
        let response = post(server.at, "/v1/chat/completions", &with(chat("x"), more.clone()));
        let error = response.json()["error"].clone();
        assert_eq!(response.status, 400, "{more}: {}", response.text());
        assert_eq!(error["param"], param, "{more}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(names), "{more}: {message}");
        assert!(!message.contains(".rs"), "{message}");
    }
    // Not strict: what cannot be enforced is passed over.
    let lenient = json!({"response_format": {"type": "json_schema", "json_schema": {"schema":
        {"type": "array", "uniqueItems": true, "items": {"type": "boolean"}, "maxItems": 2}}}});
    let (text, _) = answer(&post(server.at, "/v1/chat/completions", &with(chat("x"), lenient)).json());
    assert!(serde_json::from_str::<Vec<bool>>(&text).is_ok(), "{text}");
}
