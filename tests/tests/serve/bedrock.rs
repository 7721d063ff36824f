//! The Bedrock runtime API: Converse and InvokeModel, whole and in messages of an event stream, signatures, exceptions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dualgauge_tests::http::{Connection, Response, post, request};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, eventually, slow, with};

fn path(verb: &str) -> String {
    format!("/model/{MODEL}/{verb}")
}

fn ask(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": [{"text": text}]}],
           "inferenceConfig": {"maxTokens": 24, "temperature": 0}})
}

fn reference(server: &Running, messages: Value, more: Value) -> Value {
    let body = json!({"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": messages});
    post(server.at, "/v1/chat/completions", &with(body, more)).json()
}

fn text(answer: &Value) -> String {
    let content = answer["output"]["message"]["content"].as_array().expect("content");
    content.iter().filter_map(|b| b["text"].as_str()).collect()
}

/// Headers and payloads of an event stream. Both sums of every message are checked, bit by bit.
fn messages(response: &Response) -> Vec<(String, Value)> {
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
    assert_eq!(response.header("content-type"), Some("application/vnd.amazon.eventstream"));
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
    let mut rest = response.body.as_slice();
    let mut found = vec![];
    while !rest.is_empty() {
        let (total, headers) = (word(rest) as usize, word(&rest[4..]) as usize);
        let message;
        (message, rest) = rest.split_at(total);
        assert_eq!(word(&message[8..]), sum(&message[..8]), "the sum of the lengths");
        assert_eq!(word(&message[total - 4..]), sum(&message[..total - 4]), "the sum of the message");
        let mut head = &message[12..12 + headers];
        let (mut kind, mut event) = (String::new(), String::new());
        while let [length, tail @ ..] = head {
            let (name, tail) = tail.split_at(usize::from(*length));
            assert_eq!(tail[0], 7, "a string");
            let length = usize::from(u16::from_be_bytes([tail[1], tail[2]]));
            let value = String::from_utf8(tail[3..3 + length].to_vec()).expect("text");
            match name {
                b":message-type" => kind = value,
                b":event-type" | b":exception-type" => event = value,
                _ => assert_eq!((name, value.as_str()), (&b":content-type"[..], "application/json")),
            }
            head = &tail[3 + length..];
        }
        assert!(kind == "event" || kind == "exception", "{kind}");
        let payload = serde_json::from_slice(&message[12 + headers..total - 4]).expect("JSON");
        found.push((event, payload));
    }
    found
}

/// CRC-32, one bit at a time.
fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

/// Base64, which the pieces of InvokeModel are in.
fn decoded(text: &str) -> Value {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter_map(|b| DIGITS.iter().position(|d| *d == b));
    let (mut bytes, mut bits, mut count) = (vec![], 0usize, 0);
    for digit in digits {
        (bits, count) = (bits << 6 | digit, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn converse_says_what_the_other_apis_say() {
    let server = Running::new();
    let wanted = reference(&server, json!([{"role": "user", "content": "hello"}]), json!({}));
    let response = post(server.at, &path("converse"), &ask("hello"));
    assert!(response.header("x-amzn-requestid").is_some());
    let answer = response.json();
    assert_eq!(answer["output"]["message"]["role"], "assistant");
    assert_eq!(text(&answer), wanted["choices"][0]["message"]["content"].as_str().expect("text"));
    let reason = if wanted["choices"][0]["finish_reason"] == "length" { "max_tokens" } else { "end_turn" };
    assert_eq!(answer["stopReason"], reason);
    let usage = json!({
        "inputTokens": wanted["usage"]["prompt_tokens"],
        "outputTokens": wanted["usage"]["completion_tokens"],
        "totalTokens": wanted["usage"]["total_tokens"],
    });
    assert_eq!(answer["usage"], usage);
    assert!(answer["metrics"]["latencyMs"].is_u64());
    let counted = post(server.at, &path("count-tokens"), &json!({"input": {"converse": ask("hello")}})).json();
    assert_eq!(counted, json!({"inputTokens": usage["inputTokens"]}));

    let events = messages(&post(server.at, &path("converse-stream"), &ask("hello")));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let deltas = names.iter().filter(|n| **n == "contentBlockDelta").count();
    let mut order = vec!["messageStart"];
    order.extend(vec!["contentBlockDelta"; deltas]);
    order.extend(["contentBlockStop", "messageStop", "metadata"]);
    assert_eq!(names, order);
    let streamed: String = events.iter().filter_map(|(_, e)| e["delta"]["text"].as_str()).collect();
    assert_eq!(streamed, text(&answer));
    let [.., (_, stop), (_, metadata)] = &events[..] else { panic!("events") };
    assert_eq!((&stop["stopReason"], &metadata["usage"]), (&answer["stopReason"], &answer["usage"]));
}

#[test]
fn turns_and_fields_mean_what_they_mean_elsewhere() {
    let server = Running::new();
    let chat = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]);
    let body = json!({
        "system": [{"text": "be brief"}, {"cachePoint": {"type": "default"}}],
        "messages": [
            {"role": "user", "content": [{"text": "one"}, {"guardContent": {"text": {"text": "two"}}}]},
            {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "three"}]},
            {"role": "user", "content": [{"document": {"name": "d", "format": "txt", "source": {"text": "four"}}}]},
        ],
        "inferenceConfig": {"maxTokens": 24, "temperature": 1, "topP": 0.9},
        "additionalModelRequestFields": {"top_k": 5, "seed": 7, "nobody_knows": [1]},
    });
    let answer = post(server.at, &path("converse"), &body).json();
    let wanted = reference(&server, chat, json!({"temperature": 1, "top_p": 0.9, "top_k": 5, "seed": 7}));
    assert_eq!(text(&answer), wanted["choices"][0]["message"]["content"].as_str().expect("text"));
    assert_eq!(answer["usage"]["inputTokens"], wanted["usage"]["prompt_tokens"]);

    let full = text(&post(server.at, &path("converse"), &ask("hello")).json());
    let stop: String = full.chars().skip(3).take(3).collect();
    let config = json!({"inferenceConfig": {"maxTokens": 24, "temperature": 0, "stopSequences": [stop]}});
    let answer = post(server.at, &path("converse"), &with(ask("hello"), config)).json();
    assert_eq!(answer["stopReason"], "stop_sequence");
    assert_eq!(text(&answer), full[..full.find(&stop).expect("it is there")]);
}

#[test]
fn models_have_the_names_of_the_cloud() {
    let server = Running::with(Options { aliases: &["vendor.model-v1:0"], ..Options::default() });
    let plain = text(&post(server.at, &path("converse"), &ask("hello")).json());
    for id in [
        "vendor.model-v1%3A0",
        "vendor.model-v1:0",
        "arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Afoundation-model%2Fvendor.model-v1%3A0",
    ] {
        let response = post(server.at, &format!("/model/{id}/converse"), &ask("hello"));
        assert_eq!((response.status, text(&response.json())), (200, plain.clone()), "{id}");
    }
    // No list shows it.
    assert_eq!(request(server.at, "GET", "/v1/models", &[], b"").json()["data"].as_array().map(Vec::len), Some(1));
}

#[test]
fn three_families_are_invoked() {
    let server = Running::new();
    let invoke = |body: &Value| post(server.at, &path("invoke"), body).json();
    let stream = |body: &Value| -> Vec<Value> {
        let messages = messages(&post(server.at, &path("invoke-with-response-stream"), body));
        assert!(messages.iter().all(|(name, _)| name == "chunk"));
        messages.iter().map(|(_, payload)| decoded(payload["bytes"].as_str().expect("bytes"))).collect()
    };
    let turns = json!([{"role": "user", "content": "hello"}]);
    let wanted = reference(&server, turns.clone(), json!({}));
    let words = wanted["choices"][0]["message"]["content"].as_str().expect("text");

    let body =
        json!({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 24, "temperature": 0, "messages": turns});
    assert_eq!(invoke(&body)["content"][0]["text"], words);
    let pieces = stream(&body);
    assert_eq!(pieces.iter().filter_map(|p| p["delta"]["text"].as_str()).collect::<String>(), words);
    assert_eq!(
        (&pieces[0]["type"], &pieces[pieces.len() - 1]["type"]),
        (&json!("message_start"), &json!("message_stop"))
    );

    let body = json!({"max_tokens": 24, "temperature": 0, "messages": turns});
    assert_eq!(invoke(&body)["choices"][0]["message"]["content"], words);
    let pieces = stream(&body);
    let streamed: String = pieces.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(
        (streamed.as_str(), &pieces[pieces.len() - 1]["usage"]["prompt_tokens"]),
        (words, &wanted["usage"]["prompt_tokens"])
    );

    let body = json!({"prompt": "the quick", "max_gen_len": 9, "temperature": 0});
    let plain = json!({"model": MODEL, "prompt": "the quick", "max_tokens": 9, "temperature": 0});
    let plain = post(server.at, "/v1/completions", &plain).json();
    let answer = invoke(&body);
    assert_eq!(answer["generation"], plain["choices"][0]["text"]);
    assert_eq!(answer["prompt_token_count"], plain["usage"]["prompt_tokens"]);
    assert_eq!(
        (&answer["generation_token_count"], &answer["stop_reason"]),
        (&plain["usage"]["completion_tokens"], &plain["choices"][0]["finish_reason"])
    );
    let pieces = stream(&body);
    assert_eq!(
        pieces.iter().filter_map(|p| p["generation"].as_str()).collect::<String>(),
        answer["generation"].as_str().expect("text")
    );
    assert_eq!(pieces[pieces.len() - 1]["generation_token_count"], answer["generation_token_count"]);

    // Base64 of {"prompt":"the quick"}.
    let counted = json!({"input": {"invokeModel": {"body": "eyJwcm9tcHQiOiJ0aGUgcXVpY2sifQ=="}}});
    assert_eq!(post(server.at, &path("count-tokens"), &counted).json()["inputTokens"], plain["usage"]["prompt_tokens"]);
}

/// 2026-01-15T12:34:56Z, when the requests below were signed.
fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_768_480_496)
}

/// Signatures that botocore made of these very requests, with the secret key `secret`.
#[test]
fn signatures_are_checked() {
    const PLAIN: &str = "9b80ae52273a6e0e615bb4e37a2eeab093e9aacd288b9fcddcf4d0762b20b2a3";
    const ARN: &str = "680812eeeb5359c0f5ca0971016be55b096a38c66d3a3d31121f3ac7da94a2f1";
    let server = Running::with(Options { keys: &["other", "secret"], clock: then, ..Options::default() });
    let body = r#"{"messages":[{"role":"user","content":[{"text":"hello"}]}],"inferenceConfig":{"maxTokens":5,"temperature":0}}"#;
    let plain = format!("/model/{MODEL}/converse");
    let arn = format!("/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Afoundation-model%2F{MODEL}/converse");
    let send = |path: &str, signature: &str, date: &str, body: &str, scope: &str| {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature={signature}"
        );
        let headers = [("content-type", "application/json"), ("x-amz-date", date), ("authorization", &authorization)];
        request(server.at, "POST", path, &headers, body.as_bytes())
    };
    let (date, scope) = ("20260115T123456Z", "20260115/eu-west-1/bedrock");
    assert_eq!(send(&plain, PLAIN, date, body, scope).status, 200);
    assert_eq!(send(&arn, ARN, date, body, scope).status, 200);
    for (path, signature, date, body, scope) in [
        (&arn, PLAIN, date, body, scope),
        (&plain, &PLAIN.replace('9', "8"), date, body, scope),
        (&plain, PLAIN, "20260115T123457Z", body, scope),
        (&plain, PLAIN, "20260115T134456Z", body, scope),
        (&plain, PLAIN, "", body, scope),
        (&plain, PLAIN, "yesterday", body, scope),
        (&plain, PLAIN, date, "{}", scope),
        (&plain, PLAIN, date, body, "20260115/us-east-1/bedrock"),
        (&plain, PLAIN, date, body, "20260115/eu-west-1/s3"),
        (&plain, PLAIN, date, body, "20260114/eu-west-1/bedrock"),
        (&plain, PLAIN, date, body, "nonsense"),
        (&plain, "", date, body, scope),
    ] {
        let response = send(path, signature, date, body, scope);
        assert_eq!(
            (response.status, response.header("x-amzn-errortype")),
            (403, Some("InvalidSignatureException")),
            "{path} {signature} {date} {body} {scope}"
        );
    }
    let bearer = |key: &str| request(server.at, "POST", &plain, &[("authorization", key)], body.as_bytes());
    assert_eq!(bearer("Bearer secret").status, 200);
    let wrong = bearer("Bearer wrong");
    assert_eq!((wrong.status, wrong.header("x-amzn-errortype")), (403, Some("AccessDeniedException")));
    let none = post(server.at, &plain, &ask("hello"));
    assert_eq!((none.status, none.header("x-amzn-errortype")), (403, Some("MissingAuthenticationTokenException")));
}

#[test]
fn what_is_wrong_is_an_exception() {
    let server = Running::new();
    let long = "word ".repeat(server.context() * 4);
    let turns = |turns: Value| json!({"messages": turns});
    let user = |block: Value| turns(json!([{"role": "user", "content": [block]}]));
    let call = json!({"role": "assistant", "content": [{"toolUse": {"toolUseId": "x", "name": "f", "input": {}}}]});
    let first = json!({"role": "user", "content": [{"text": "a"}]});
    let bad = [
        turns(json!([])),
        turns(Value::Null),
        turns(json!("hello")),
        turns(json!([{"role": "user", "content": []}])),
        turns(json!([{"role": "assistant", "content": [{"text": "x"}]}])),
        turns(json!([{"role": "judge", "content": [{"text": "x"}]}])),
        turns(json!([first, call, first])),
        turns(json!([first, call])),
        user(json!({})),
        user(json!({"text": 5})),
        user(json!({"text": long})),
        user(json!({"image": {"format": "png", "source": {"bytes": ""}}})),
        user(json!({"toolResult": {"toolUseId": "x", "content": [{"text": "y"}]}})),
        json!({"inferenceConfig": {"maxTokens": 0}}),
        json!({"inferenceConfig": {"temperature": 1.5}}),
        json!({"inferenceConfig": {"topP": "all"}}),
        json!({"toolConfig": {"tools": [{}]}}),
        json!({"toolConfig": {"tools": [], "toolChoice": {"any": {}}}}),
        json!({"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}], "toolChoice": {"tool": {"name": "g"}}}}),
        json!({"outputConfig": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{"}}}}}),
    ];
    for more in bad {
        for verb in ["converse", "converse-stream"] {
            let body = with(ask("hello"), more.clone());
            let response = post(server.at, &path(verb), &body);
            let shown = body.to_string();
            let shown = &shown[..shown.len().min(200)];
            assert_eq!(response.status, 400, "{verb} {shown}: {}", String::from_utf8_lossy(&response.body));
            assert_eq!(response.header("x-amzn-errortype"), Some("ValidationException"), "{shown}");
            assert!(response.json()["message"].as_str().is_some_and(|m| !m.is_empty()), "{shown}");
        }
    }
    for (path, body, status, kind) in [
        (path("converse"), "{", 400, "ValidationException"),
        (path("invoke"), "{}", 400, "ValidationException"),
        (path("invoke"), r#"{"prompt": ""}"#, 400, "ValidationException"),
        (path("invoke"), r#"{"messages": []}"#, 400, "ValidationException"),
        (
            path("invoke-with-response-stream"),
            r#"{"anthropic_version": "x", "messages": []}"#,
            400,
            "ValidationException",
        ),
        (path("count-tokens"), r#"{"input": {}}"#, 400, "ValidationException"),
        (path("count-tokens"), r#"{"input": {"invokeModel": {"body": "???"}}}"#, 400, "ValidationException"),
        ("/model/other/converse".to_owned(), "{}", 404, "ResourceNotFoundException"),
        ("/model/other/invoke".to_owned(), "{}", 404, "ResourceNotFoundException"),
        ("/model/%ff/invoke".to_owned(), "{}", 400, "ValidationException"),
        ("/model/x/y/converse".to_owned(), "{}", 404, "ResourceNotFoundException"),
    ] {
        let response = request(server.at, "POST", &path, &[], body.as_bytes());
        assert_eq!((response.status, response.header("x-amzn-errortype")), (status, Some(kind)), "{path} {body}");
        assert!(response.json()["message"].is_string(), "{path} {body}");
    }
}

#[test]
fn who_hangs_up_frees_the_blocks() {
    let server = Running::with(Options { null: slow(), ..Options::default() });
    let held = || server.metric_of("dualgauge_kv_blocks", "held");
    let turns = json!([{"role": "user", "content": "hello"}]);
    let endless = json!({"messages": turns, "temperature": 1, "seed": 5, "ignore_eos": true});
    let converse =
        with(ask("hello"), json!({"inferenceConfig": {"temperature": 1}, "additionalModelRequestFields": {"seed": 5}}));
    for (verb, body) in
        [("converse", &converse), ("converse-stream", &converse), ("invoke-with-response-stream", &endless)]
    {
        let mut connection = Connection::open(server.at);
        connection.send("POST", &path(verb), &[], body.to_string().as_bytes());
        eventually("it runs", || held() > 0.0);
        drop(connection);
        eventually("it is gone", || held() == 0.0);
    }
}
