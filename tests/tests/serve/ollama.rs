//! The Ollama API: bodies, lines, options, loads, lists and errors, as its client reads them.

use dualgauge_tests::http::{Connection, Response, get, post, request};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, eventually, slow, with};

fn ask(text: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": false,
           "options": {"temperature": 0, "num_predict": 24}})
}

fn reference(server: &Running, messages: Value, more: Value) -> Value {
    let body = json!({"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": messages});
    post(server.at, "/v1/chat/completions", &with(body, more)).json()
}

fn lines(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/x-ndjson"));
    let text = response.text();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON in a line")).collect()
}

#[test]
fn a_chat_says_what_the_other_apis_say() {
    let server = Running::new();
    let messages = json!([{"role": "user", "content": "hello"}]);
    let wanted = reference(&server, messages, json!({}));
    let answer = post(server.at, "/api/chat", &ask("hello")).json();
    let text = &wanted["choices"][0]["message"]["content"];
    assert_eq!((&answer["model"], &answer["done"]), (&json!(MODEL), &json!(true)));
    assert_eq!(answer["message"], json!({"role": "assistant", "content": text}));
    let reason = if wanted["choices"][0]["finish_reason"] == "length" { "length" } else { "stop" };
    assert_eq!(answer["done_reason"], reason);
    assert_eq!(answer["prompt_eval_count"], wanted["usage"]["prompt_tokens"]);
    assert_eq!(answer["eval_count"], wanted["usage"]["completion_tokens"]);
    for duration in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
        assert!(answer[duration].is_u64(), "{duration}: {answer}");
    }
    assert!(answer["created_at"].as_str().is_some_and(|t| t.ends_with('Z')));

    // Streamed unless told otherwise; NAME:latest is NAME.
    let mut body = with(ask("hello"), json!({"model": format!("{MODEL}:latest")}));
    body.as_object_mut().expect("fields").remove("stream");
    let lines = lines(&post(server.at, "/api/chat", &body));
    let (last, pieces) = lines.split_last().expect("lines");
    assert!(pieces.len() > 1 && pieces.iter().all(|p| p["done"] == false && p["message"]["role"] == "assistant"));
    let streamed: String = pieces.iter().filter_map(|p| p["message"]["content"].as_str()).collect();
    assert_eq!(streamed, text.as_str().expect("text"));
    assert_eq!((&last["done"], &last["message"]["content"]), (&json!(true), &json!("")));
    assert_eq!((&last["done_reason"], &last["eval_count"]), (&answer["done_reason"], &answer["eval_count"]));
    assert!(last.get("context").is_none());
}

#[test]
fn turns_and_options_mean_what_they_mean_elsewhere() {
    let server = Running::new();
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]);
    let ours = |options: Value| {
        let body = with(ask(""), json!({"messages": messages, "options": options}));
        post(server.at, "/api/chat", &body).json()["message"]["content"].clone()
    };
    let theirs = |more: Value| reference(&server, messages.clone(), more)["choices"][0]["message"]["content"].clone();
    for (options, more) in [
        (json!({"temperature": 0, "num_predict": 9}), json!({"max_tokens": 9})),
        (json!({"temperature": 1, "seed": 7, "num_predict": 24}), json!({"temperature": 1, "seed": 7})),
        (
            json!({"temperature": 1, "seed": 7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "num_predict": 24}),
            json!({"temperature": 1, "seed": 7, "top_k": 5, "top_p": 0.9, "min_p": 0.01}),
        ),
        (
            json!({"temperature": 0, "repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 0.5, "num_predict": 24}),
            json!({"repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 0.5}),
        ),
    ] {
        assert_eq!(ours(options.clone()), theirs(more), "{options}");
    }
    let full = ours(json!({"temperature": 0, "num_predict": 24}));
    let full = full.as_str().expect("text");
    let stop: String = full.chars().skip(3).take(3).collect();
    let wanted = &full[..full.find(&stop).expect("it is there")];
    assert_eq!(ours(json!({"temperature": 0, "num_predict": 24, "stop": [stop]})), wanted);

    // A context of one's own bounds the answer, and refuses a prompt that does not fit.
    let prompt = post(server.at, "/api/chat", &ask("hello")).json()["prompt_eval_count"].as_u64().expect("a count");
    let narrow = |context: u64| {
        let options = json!({"temperature": 0, "num_ctx": context});
        post(server.at, "/api/chat", &with(ask("hello"), json!({"options": options})))
    };
    assert!(narrow(prompt + 3).json()["eval_count"].as_u64().is_some_and(|n| n <= 3));
    assert_eq!(narrow(prompt).status, 400);
}

#[test]
fn generate_makes_a_prompt_or_takes_it_raw() {
    let server = Running::new();
    let options = json!({"temperature": 0, "num_predict": 12});
    let body = json!({"model": MODEL, "prompt": "hello", "system": "be brief", "stream": false, "options": options});
    let answer = post(server.at, "/api/generate", &body).json();
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]);
    let wanted = reference(&server, messages.clone(), json!({"max_tokens": 12, "return_token_ids": true}));
    assert_eq!(answer["response"], wanted["choices"][0]["message"]["content"]);
    let ids = |value: &Value| value.as_array().expect("ids").clone();
    let context = [ids(&wanted["prompt_token_ids"]), ids(&wanted["choices"][0]["token_ids"])].concat();
    assert_eq!(ids(&answer["context"]), context);

    // A context of before stands before the next prompt.
    let next = json!({"model": MODEL, "prompt": "more", "context": context, "stream": false, "options": options});
    let next = post(server.at, "/api/generate", &next).json();
    assert!(next["prompt_eval_count"].as_u64() > Some(context.len() as u64));
    assert_eq!(ids(&next["context"])[..context.len()], context[..]);

    let raw = json!({"model": MODEL, "prompt": "the quick", "raw": true, "stream": false, "options": options});
    let raw = post(server.at, "/api/generate", &raw).json();
    let plain = json!({"model": MODEL, "prompt": "the quick", "max_tokens": 12, "temperature": 0});
    let plain = post(server.at, "/v1/completions", &plain).json();
    assert_eq!(raw["response"], plain["choices"][0]["text"]);
    let streamed = lines(&post(server.at, "/api/generate", &with(body, json!({"stream": true}))));
    let text: String = streamed.iter().filter_map(|l| l["response"].as_str()).collect();
    assert_eq!(text, answer["response"].as_str().expect("text"));
    assert_eq!(ids(&streamed.last().expect("an end")["context"]), context);

    // No prompt: the model is there, and that is all.
    for (path, body) in [
        ("/api/generate", json!({"model": MODEL, "stream": false})),
        ("/api/chat", json!({"model": MODEL, "messages": [], "stream": false})),
    ] {
        let loaded = post(server.at, path, &body).json();
        assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")), "{path}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_other_apis() {
    let server = Running::new();
    let body = with(ask("hello"), json!({"logprobs": true, "top_logprobs": 2}));
    let answer = post(server.at, "/api/chat", &body).json();
    let messages = json!([{"role": "user", "content": "hello"}]);
    let wanted = reference(&server, messages, json!({"logprobs": true, "top_logprobs": 2}));
    let pairs = |list: &Value| -> Vec<(Value, Option<f32>, Value)> {
        let logprob = |t: &Value| t["logprob"].as_f64().map(|l| l as f32);
        let list = list.as_array().expect("tokens");
        list.iter().map(|t| (t["token"].clone(), logprob(t), t["top_logprobs"][1]["token"].clone())).collect()
    };
    assert_eq!(pairs(&answer["logprobs"]), pairs(&wanted["choices"][0]["logprobs"]["content"]));
}

#[test]
fn editors_find_what_they_look_for() {
    let server = Running::with(Options { keys: &["secret"], ..Options::default() });
    let root = get(server.at, "/");
    assert_eq!((root.status, root.text().as_str()), (200, "Ollama is running"));
    let mut connection = Connection::open(server.at);
    connection.raw(b"HEAD / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    assert!(connection.is_head_only(200));

    let key = [("authorization", "Bearer secret")];
    let get = |path: &str| request(server.at, "GET", path, &key, b"").json();
    let models = get("/api/tags")["models"].clone();
    assert_eq!((&models[0]["name"], &models[0]["model"]), (&json!(MODEL), &json!(MODEL)));
    assert_eq!((models[0]["size"].is_u64(), models[0]["details"]["family"].is_string()), (true, true));
    assert_eq!(models[0]["digest"].as_str().map(str::len), Some(64));
    assert!(get("/api/version")["version"].is_string());
    assert_eq!(get("/api/ps")["models"][0]["context_length"], server.context());
    let show = request(server.at, "POST", "/api/show", &key, json!({"model": MODEL}).to_string().as_bytes()).json();
    let family = show["model_info"]["general.architecture"].as_str().expect("a family");
    assert_eq!(show["model_info"][format!("{family}.context_length")], server.context());
    assert!(show["capabilities"].as_array().is_some_and(|c| c.contains(&json!("completion"))));
}

#[test]
fn errors_are_one_string() {
    let server = Running::with(Options { keys: &["secret"], ..Options::default() });
    let send = |path: &str, key: &str, body: &str| {
        let key = format!("Bearer {key}");
        request(server.at, "POST", path, &[("authorization", &key)], body.as_bytes())
    };
    let long = "word ".repeat(server.context() * 4);
    let chat = |more: Value| ("/api/chat", with(ask("hello"), more).to_string());
    let generate = |more: Value| ("/api/generate", with(json!({"model": MODEL, "prompt": "x"}), more).to_string());
    let bad = [
        ("/api/chat", "{".to_owned()),
        ("/api/chat", "{}".to_owned()),
        ("/api/show", "{}".to_owned()),
        ("/api/embed", json!({"model": MODEL, "input": "x"}).to_string()),
        chat(json!({"format": "yaml"})),
        chat(json!({"format": 5})),
        chat(json!({"options": {"temperature": "hot"}})),
        chat(json!({"options": {"temperature": -1}})),
        chat(json!({"options": {"num_predict": 1.5}})),
        chat(json!({"options": {"stop": 5}})),
        chat(json!({"options": []})),
        chat(json!({"messages": [{"role": "judge", "content": "x"}]})),
        chat(json!({"messages": [{"role": "tool", "content": "x"}]})),
        chat(json!({"messages": [{"role": "user", "content": 5}]})),
        chat(json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]})),
        chat(json!({"messages": [{"role": "user", "content": long}]})),
        generate(json!({"suffix": "y"})),
        generate(json!({"context": [-1]})),
        generate(json!({"raw": "yes"})),
    ];
    let unknown = [
        ("/api/chat", with(ask("hello"), json!({"model": "other"})).to_string()),
        ("/api/show", json!({"model": "other"}).to_string()),
        ("/api/nothing", "{}".to_owned()),
    ];
    let cases = bad.into_iter().map(|case| (case, 400)).chain(unknown.into_iter().map(|case| (case, 404)));
    for ((path, body), status) in cases {
        let response = send(path, "secret", &body);
        let shown = &body[..body.len().min(200)];
        assert_eq!(response.status, status, "{path} {shown}: {}", response.text());
        assert!(response.json()["error"].as_str().is_some_and(|e| !e.is_empty()), "{path} {shown}");
    }
    let unauthorized = send("/api/chat", "wrong", &ask("hello").to_string());
    assert_eq!((unauthorized.status, unauthorized.json()["error"].is_string()), (401, true));
}

#[test]
fn who_hangs_up_frees_the_blocks() {
    let server = Running::with(Options { null: slow(), ..Options::default() });
    let held = || server.metric_of("dualgauge_kv_blocks", "held");
    let body = with(ask("hello"), json!({"stream": true, "options": {"temperature": 1, "seed": 5}}));
    let mut connection = Connection::open(server.at);
    connection.send("POST", "/api/chat", &[], body.to_string().as_bytes());
    eventually("it runs", || held() > 0.0);
    drop(connection);
    eventually("it is gone", || held() == 0.0);
}
