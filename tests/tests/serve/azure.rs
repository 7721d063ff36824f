//! Azure OpenAI: the deployment in the path, the version in the query, errors whose code is always a string.

use dualgauge_tests::http::{post, request, stream};
use serde_json::{Value, json};

use crate::server::{MODEL, Options, Running, chat, content, with};

const VERSION: &str = "?api-version=2024-10-21";

fn deployment(path: &str) -> String {
    format!("/openai/deployments/{MODEL}/{path}{VERSION}")
}

#[test]
fn a_deployment_answers_as_the_model_does() {
    let server = Running::new();
    let wanted = post(server.at, "/v1/chat/completions", &chat("hello")).json();
    let text = |body: &Value| body["choices"][0]["message"]["content"].clone();
    // What the body calls the model is of no interest here.
    for model in [json!(MODEL), json!("another"), Value::Null] {
        let answer = post(server.at, &deployment("chat/completions"), &with(chat("hello"), json!({"model": model})));
        assert_eq!((text(&answer.json()), &answer.json()["model"]), (text(&wanted), &json!(MODEL)), "{model}");
    }
    let events =
        stream(server.at, &deployment("chat/completions"), &with(chat("hello"), json!({"stream": true}))).all();
    assert_eq!(content(&events), text(&wanted).as_str().expect("text"));
    let completion =
        post(server.at, &deployment("completions"), &json!({"prompt": "the quick", "max_tokens": 5, "temperature": 0}));
    assert_eq!(completion.json()["usage"]["completion_tokens"], 5);
    // The newer base: the body names the model, and there is no version.
    assert_eq!(text(&post(server.at, "/openai/v1/chat/completions", &chat("hello")).json()), text(&wanted));
    for path in [format!("/openai/models{VERSION}"), "/openai/v1/models".to_owned()] {
        let models = request(server.at, "GET", &path, &[], b"").json();
        assert_eq!(models["data"][0]["id"], MODEL, "{path}");
    }
}

#[test]
fn codes_of_errors_are_strings() {
    let server = Running::with(Options { keys: &["secret"], ..Options::default() });
    let send = |path: &str, key: &str, body: Value| {
        request(server.at, "POST", path, &[("api-key", key)], body.to_string().as_bytes())
    };
    let other = format!("/openai/deployments/other/chat/completions{VERSION}");
    let bare = format!("/openai/deployments/{MODEL}/chat/completions");
    let long = chat(&"word ".repeat(server.context() * 4));
    for (path, key, body, status, code) in [
        (deployment("chat/completions"), "wrong", chat("hello"), 401, "401"),
        (other, "secret", chat("hello"), 404, "DeploymentNotFound"),
        (bare, "secret", chat("hello"), 404, "not_found"),
        (deployment("chat/completions"), "secret", long, 400, "context_length_exceeded"),
        (deployment("chat/completions"), "secret", json!({"messages": []}), 400, "400"),
        (deployment("embeddings"), "secret", json!({"input": "x"}), 400, "unsupported_parameter"),
        (
            "/openai/v1/chat/completions".to_owned(),
            "secret",
            with(chat("x"), json!({"model": "other"})),
            404,
            "DeploymentNotFound",
        ),
    ] {
        let response = send(&path, key, body);
        assert_eq!((response.status, &response.json()["error"]["code"]), (status, &json!(code)), "{path}");
        assert!(response.json()["error"]["message"].is_string(), "{path}");
    }
}
