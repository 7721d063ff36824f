//! The Gemini API: bodies in both cases, streams in both frames, counts, stops and errors, as its client reads them.

use dualgauge_tests::http::{Connection, get, post, request};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, eventually, slow, with};

fn path(verb: &str) -> String {
    format!("/v1beta/models/{MODEL}:{verb}")
}

fn ask(text: &str) -> Value {
    json!({"contents": [{"role": "user", "parts": [{"text": text}]}],
           "generationConfig": {"temperature": 0, "maxOutputTokens": 24}})
}

fn reference(server: &Running, messages: Value, more: Value) -> Value {
    let body = json!({"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": messages});
    post(server.at, "/v1/chat/completions", &with(body, more)).json()
}

fn text(response: &Value) -> String {
    let parts = response["candidates"][0]["content"]["parts"].as_array().expect("parts");
    parts.iter().filter_map(|p| p["text"].as_str()).collect()
}

#[test]
fn content_is_generated() {
    let server = Running::new();
    let wanted = reference(&server, json!([{"role": "user", "content": "hello"}]), json!({}));
    let choice = &wanted["choices"][0];
    let answer = post(server.at, &path("generateContent"), &ask("hello")).json();
    let candidate = &answer["candidates"][0];
    assert_eq!((&candidate["index"], &candidate["content"]["role"]), (&json!(0), &json!("model")));
    assert_eq!(candidate["content"]["parts"], json!([{"text": choice["message"]["content"]}]));
    let reason = if choice["finish_reason"] == "length" { "MAX_TOKENS" } else { "STOP" };
    assert_eq!((&candidate["finishReason"], &answer["modelVersion"]), (&json!(reason), &json!(MODEL)));
    assert!(answer["responseId"].is_string());
    let usage = json!({
        "promptTokenCount": wanted["usage"]["prompt_tokens"],
        "candidatesTokenCount": wanted["usage"]["completion_tokens"],
        "totalTokenCount": wanted["usage"]["total_tokens"],
    });
    assert_eq!(answer["usageMetadata"], usage);
    // The version of the newer clients, and the model's name in full.
    let newer = format!("/v1/models/{MODEL}:generateContent");
    assert_eq!(post(server.at, &newer, &ask("hello")).json()["candidates"], answer["candidates"]);

    for body in [ask("hello"), json!({"generateContentRequest": ask("hello")})] {
        let body = if body.get("contents").is_some() { json!({"contents": body["contents"]}) } else { body };
        let counted = post(server.at, &path("countTokens"), &body).json();
        assert_eq!(counted["totalTokens"], usage["promptTokenCount"]);
    }
}

#[test]
fn turns_are_read_in_both_cases() {
    let server = Running::new();
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]);
    let contents = json!([
        {"parts": [{"text": "one"}, {"text": "two"}]},
        {"role": "model", "parts": [{"text": "hm", "thought": true}, {"text": "three"}]},
        {"role": "user", "parts": [{"text": "four"}]},
    ]);
    let wanted = reference(&server, messages, json!({"max_tokens": 9}));
    let system = json!({"parts": [{"text": "be brief"}]});
    for body in [
        json!({"contents": contents, "systemInstruction": system, "generationConfig": {"temperature": 0, "maxOutputTokens": 9}}),
        json!({"contents": contents, "system_instruction": system, "generation_config": {"temperature": 0, "max_output_tokens": 9}}),
    ] {
        let answer = post(server.at, &path("generateContent"), &body).json();
        assert_eq!(text(&answer), wanted["choices"][0]["message"]["content"].as_str().expect("text"));
        assert_eq!(answer["usageMetadata"]["promptTokenCount"], wanted["usage"]["prompt_tokens"]);
    }
}

#[test]
fn streams_come_as_events_and_as_an_array() {
    let server = Running::new();
    let whole = post(server.at, &path("generateContent"), &ask("hello")).json();
    let events = post(server.at, &format!("{}?alt=sse", path("streamGenerateContent")), &ask("hello"));
    assert!(events.header("content-type").is_some_and(|t| t.starts_with("text/event-stream")));
    let body = events.text();
    let events = body.trim_end().split("\n\n").map(|event| event.strip_prefix("data: ").expect("data"));
    let events: Vec<Value> = events.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let array = post(server.at, &path("streamGenerateContent"), &ask("hello")).json();
    for responses in [events, array.as_array().expect("an array").clone()] {
        let (last, pieces) = responses.split_last().expect("responses");
        assert!(pieces.len() > 1 && pieces.iter().all(|r| r["candidates"][0].get("finishReason").is_none()));
        assert_eq!(responses.iter().map(text).collect::<String>(), text(&whole));
        assert_eq!(last["candidates"][0]["finishReason"], whole["candidates"][0]["finishReason"]);
        assert_eq!(last["usageMetadata"], whole["usageMetadata"]);
        assert!(responses.iter().all(|r| r["responseId"] == responses[0]["responseId"]));
    }
}

#[test]
fn configurations_mean_what_they_mean_elsewhere() {
    let server = Running::new();
    let messages = json!([{"role": "user", "content": "hello"}]);
    let ours = |config: Value| {
        post(server.at, &path("generateContent"), &with(ask("hello"), json!({"generationConfig": config}))).json()
    };
    let config = json!({"temperature": 1, "seed": 7, "topK": 5.0, "topP": 0.9, "presencePenalty": 1, "frequencyPenalty": 0.5, "maxOutputTokens": 24});
    let more =
        json!({"temperature": 1, "seed": 7, "top_k": 5, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": 0.5});
    let wanted = reference(&server, messages.clone(), more);
    assert_eq!(text(&ours(config)), wanted["choices"][0]["message"]["content"].as_str().expect("text"));

    let full = text(&post(server.at, &path("generateContent"), &ask("hello")).json());
    let stop: String = full.chars().skip(3).take(3).collect();
    let answer = ours(json!({"temperature": 0, "maxOutputTokens": 24, "stopSequences": [stop]}));
    assert_eq!(
        (text(&answer).as_str(), &answer["candidates"][0]["finishReason"]),
        (&full[..full.find(&stop).expect("it is there")], &json!("STOP"))
    );

    let several = ours(json!({"temperature": 1, "seed": 7, "candidateCount": 3, "maxOutputTokens": 12}));
    let wanted = reference(&server, messages.clone(), json!({"temperature": 1, "seed": 7, "n": 3, "max_tokens": 12}));
    for i in 0..3 {
        let parts = &several["candidates"][i]["content"]["parts"];
        assert_eq!(parts[0]["text"], wanted["choices"][i]["message"]["content"], "{i}");
    }
    assert_eq!(several["usageMetadata"]["candidatesTokenCount"], wanted["usage"]["completion_tokens"]);

    let told = ours(json!({"temperature": 0, "maxOutputTokens": 5, "responseLogprobs": true, "logprobs": 2}));
    let wanted = reference(&server, messages, json!({"max_tokens": 5, "logprobs": true, "top_logprobs": 2}));
    let result = &told["candidates"][0]["logprobsResult"];
    for (i, token) in wanted["choices"][0]["logprobs"]["content"].as_array().expect("tokens").iter().enumerate() {
        let chosen = &result["chosenCandidates"][i];
        let value = |logprob: &Value| logprob.as_f64().expect("a number") as f32;
        assert_eq!(chosen["token"], token["token"]);
        assert_eq!(value(&chosen["logProbability"]), value(&token["logprob"]));
        assert_eq!(result["topCandidates"][i]["candidates"][1]["token"], token["top_logprobs"][1]["token"]);
    }
}

#[test]
fn errors_have_a_code_and_a_name() {
    let server = Running::with(Options { keys: &["secret"], ..Options::default() });
    let send = |path: &str, key: &str, body: &str| {
        request(server.at, "POST", path, &[("x-goog-api-key", key)], body.as_bytes())
    };
    let long = "word ".repeat(server.context() * 4);
    let config = |config: Value| json!({"generationConfig": config});
    let function = json!({"name": "f", "parameters": {"type": "DATE"}});
    let bad = [
        json!({"contents": []}),
        json!({"contents": "hello"}),
        json!({"contents": [{"role": "judge", "parts": [{"text": "x"}]}]}),
        json!({"contents": [{"role": "user", "parts": []}]}),
        json!({"contents": [{"parts": [{"text": 5}]}]}),
        json!({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}]}),
        json!({"contents": [{"parts": [{"functionResponse": {"name": "f", "response": {}}}]}]}),
        json!({"contents": [{"parts": [{"text": long}]}]}),
        json!({"kontents": []}),
        config(json!({"temperature": 2.5})),
        config(json!({"temperature": "hot"})),
        config(json!({"maxOutputTokens": 0})),
        config(json!({"candidateCount": 99})),
        config(json!({"stopSequences": ["1", "2", "3", "4", "5", "6"]})),
        config(json!({"responseMimeType": "text/html"})),
        config(json!({"responseSchema": {"type": "STRING"}})),
        config(json!({"responseMimeType": "application/json", "responseSchema": {"type": "DATE"}})),
        config(json!({"logprobs": 3})),
        config(json!({"warmth": 1})),
        json!({"tools": [{"googleSearch": {}}]}),
        json!({"tools": [{"functionDeclarations": [function]}]}),
        json!({"toolConfig": {"functionCallingConfig": {"mode": "SOMETIMES"}}}),
    ];
    let bad = bad
        .into_iter()
        .map(|more| (path("generateContent"), with(ask("hello"), more).to_string(), 400, "INVALID_ARGUMENT"));
    let cases = bad.chain([
        (path("generateContent"), "{".to_owned(), 400, "INVALID_ARGUMENT"),
        (path("embedContent"), "{}".to_owned(), 400, "INVALID_ARGUMENT"),
        (path("paint"), "{}".to_owned(), 404, "NOT_FOUND"),
        ("/v1beta/models/other:generateContent".to_owned(), ask("hello").to_string(), 404, "NOT_FOUND"),
        ("/v1beta/files".to_owned(), "{}".to_owned(), 404, "NOT_FOUND"),
    ]);
    for (path, body, code, status) in cases {
        let response = send(&path, "secret", &body);
        let shown = &body[..body.len().min(200)];
        assert_eq!(response.status, code, "{path} {shown}: {}", response.text());
        let error = response.json()["error"].clone();
        assert_eq!((&error["code"], &error["status"]), (&json!(code), &json!(status)), "{path} {shown}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{path} {shown}");
    }
    let wrong = send(&path("generateContent"), "wrong", &ask("hello").to_string());
    assert_eq!((wrong.status, &wrong.json()["error"]["details"][0]["reason"]), (400, &json!("API_KEY_INVALID")));
    let keyed = post(server.at, &format!("{}?key=secret", path("generateContent")), &ask("hello"));
    assert_eq!(keyed.status, 200);
}

#[test]
fn models_answer_by_the_header_and_by_the_path() {
    let server = Running::new();
    let client = [("x-goog-api-client", "test")];
    let list = request(server.at, "GET", "/v1/models?pageSize=10", &client, b"").json();
    let entry = &list["models"][0];
    assert_eq!(
        (&entry["name"], &entry["inputTokenLimit"]),
        (&json!(format!("models/{MODEL}")), &json!(server.context()))
    );
    assert!(entry["supportedGenerationMethods"].as_array().is_some_and(|m| m.contains(&json!("countTokens"))));
    assert_eq!(get(server.at, "/v1beta/models").json(), list);
    assert_eq!(get(server.at, &format!("/v1beta/models/{MODEL}")).json(), *entry);
    let lost = get(server.at, "/v1beta/models/other");
    assert_eq!((lost.status, &lost.json()["error"]["status"]), (404, &json!("NOT_FOUND")));
}

#[test]
fn who_hangs_up_frees_the_blocks() {
    let server = Running::with(Options { null: slow(), ..Options::default() });
    let held = || server.metric_of("dualgauge_kv_blocks", "held");
    let body = with(ask("hello"), json!({"generationConfig": {"temperature": 1, "seed": 5, "candidateCount": 3}}));
    let mut connection = Connection::open(server.at);
    connection.send("POST", &format!("{}?alt=sse", path("streamGenerateContent")), &[], body.to_string().as_bytes());
    eventually("it runs", || held() > 0.0);
    drop(connection);
    eventually("it is gone", || held() == 0.0);
}
