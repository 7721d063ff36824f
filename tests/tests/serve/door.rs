//! The door: routes, keys, sizes and times.

use std::time::{Duration, Instant};

use dualgauge_serve::Limits;
use dualgauge_tests::http::{Connection, get, request};

use crate::server::{Options, Running, chat};

#[test]
fn unknown_routes_and_methods_are_errors_of_the_api() {
    let server = Running::new();
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/embeddings", 400),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
    ] {
        let response = request(server.at, method, path, &[], b"");
        assert_eq!(response.status, status, "{method} {path}");
        assert!(response.json()["error"]["message"].is_string(), "{method} {path}");
    }
    let mut connection = Connection::open(server.at);
    connection.raw(b"HEAD /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    assert!(connection.is_head_only(200));
}

#[test]
fn keys_guard_every_route_but_health() {
    let server = Running::with(Options { keys: &["one", "two"], ..Options::default() });
    for path in ["/health", "/ready", "/ping"] {
        assert_eq!(get(server.at, path).status, 200, "{path}");
    }
    let guarded = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/nothing"),
        ("DELETE", "/v1/models"),
        ("GET", "//v1/models"),
        ("GET", "/v1/models?x=/health"),
        ("GET", "/health/../v1/models"),
        ("GET", "/%2e/health"),
    ];
    for (method, path) in guarded {
        for headers in [&[][..], &[("authorization", "Bearer three")], &[("x-api-key", "")], &[("host", "x/health#")]] {
            let response = request(server.at, method, path, headers, b"");
            assert_eq!(response.status, 401, "{method} {path} {headers:?}");
            assert_eq!(response.json()["error"]["code"], "invalid_api_key");
        }
    }
    for headers in [
        [("authorization", "Bearer one")],
        [("authorization", "bearer two")],
        [("x-api-key", "two")],
        [("api-key", "one")],
        [("x-goog-api-key", "one")],
    ] {
        assert_eq!(request(server.at, "GET", "/v1/models", &headers, b"").status, 200, "{headers:?}");
    }
}

#[test]
fn sizes_and_times_are_bounded() {
    let wait = Duration::from_millis(300);
    let limits = Limits { header_timeout: wait, body_timeout: wait, ..Limits::default() };
    let server = Running::with(Options { limits, ..Options::default() });
    let huge = vec![b' '; 17 << 20];
    assert_eq!(request(server.at, "POST", "/v1/completions", &[], &huge).status, 413);
    let path = format!("/v1/models?x={}", "y".repeat(9000));
    assert_eq!(get(server.at, &path).status, 414);
    let value = "z".repeat(33 << 10);
    assert_eq!(request(server.at, "GET", "/health", &[("x-a", &value)], b"").status, 431);
    let value = "z".repeat(1 << 20);
    assert_eq!(request(server.at, "GET", "/health", &[("x-a", &value)], b"").status, 431);
    let mut connection = Connection::open(server.at);
    let many: String = (0..500).map(|i| format!("x-{i}: y\r\n")).collect();
    connection.raw(format!("GET /health HTTP/1.1\r\nhost: test\r\n{many}\r\n").as_bytes());
    assert_eq!(connection.response().status, 431);

    // Two lengths.
    let mut connection = Connection::open(server.at);
    connection.raw(b"POST /tokenize HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x");
    assert_eq!(connection.response().status, 400);

    // A body that never ends.
    let mut slow = Connection::open(server.at);
    slow.raw(b"POST /tokenize HTTP/1.1\r\nhost: test\r\ncontent-length: 20\r\n\r\n{");
    assert_eq!(slow.response().status, 408);

    // Headers that never end.
    let mut slow = Connection::open(server.at);
    slow.raw(b"GET /health HTTP/1.1\r\nhost: te");
    let begun = Instant::now();
    assert!(slow.is_closed());
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(get(server.at, "/health").status, 200);
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Running::new();
    let mut connection = Connection::open(server.at);
    for i in 0..5 {
        let id = format!("mine-{i}");
        let body = chat("hello").to_string();
        connection.send("POST", "/v1/chat/completions", &[("x-request-id", &id)], body.as_bytes());
        let response = connection.response();
        assert_eq!((response.status, response.header("x-request-id")), (200, Some(id.as_str())));
    }
    connection.send("GET", "/health", &[("x-request-id", "not a good id")], b"");
    assert!(connection.response().header("x-request-id").is_some_and(|id| id.starts_with("req-")));
}

/// Every route that the document lists is there, with the method that it lists.
#[test]
fn the_document_of_routes_is_true() {
    let server = Running::new();
    let document = get(server.at, "/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 30);
    for (path, operations) in paths {
        for method in operations.as_object().expect("operations").keys() {
            let verb = if method == "post" { "tiny-llama:countTokens" } else { "tiny-llama" };
            let path = format!("{}?api-version=1", path.replace("{model}", verb).replace(['{', '}'], ""));
            let response = request(server.at, &method.to_uppercase(), &path, &[], b"{}");
            let text = response.text();
            assert!(response.status != 405 && !text.contains("There is no route"), "{method} {path}: {text}");
            assert!(response.status < 500, "{method} {path}: {text}");
        }
    }
}
