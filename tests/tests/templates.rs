//! Chat templates against goldens of the library that models are made with, and templates that mean harm.

use std::path::{Path, PathBuf};

use dualgauge_models::text::{ChatTemplate, Conversation, Message};
use serde_json::{Value, json};

/// Files of the repository that tests read.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Files beside the repository; tests that need them are skipped by name where they are not.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures").join(path);
    path.exists().then_some(path)
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn skipped(what: &str) {
    println!("skipped: {what}");
}

#[test]
fn chat_templates_render_as_the_library_does() {
    let Some(folder) = shared("templates") else { return skipped("chat templates (no ../shared/fixtures/templates)") };
    let conversations = read(&folder.join("conversations.json"));
    let tokens: std::collections::BTreeMap<String, String> = conversations["tokens"]
        .as_object()
        .expect("tokens")
        .iter()
        .map(|(name, text)| (name.clone(), text.as_str().expect("text").to_owned()))
        .collect();
    let only = option_env!("TEMPLATE");
    let (mut passed, mut nulls, mut known, mut total, mut failures) = (0, 0, 0, 0, Vec::new());
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("readable").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    for file in files {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        if file.extension().is_none_or(|kind| kind != "json")
            || name == "conversations"
            || only.is_some_and(|only| only != name)
        {
            continue;
        }
        let golden = read(&file);
        let source =
            std::fs::read_to_string(folder.join(golden["template"].as_str().expect("path"))).expect("readable");
        let template = ChatTemplate::new(&source, tokens.clone());
        for case in golden["cases"].as_array().expect("cases") {
            let which = case["conversation"].as_str().expect("name");
            let given = &conversations["conversations"][which];
            total += 1;
            let got = template
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|template| template.render(&conversation(given, case)).map_err(|error| error.to_string()));
            match (case.get("expected").and_then(Value::as_str), &got) {
                (Some(want), Ok(got)) if want == got => passed += 1,
                (None, Err(_)) => passed += 1,
                // The goldens show what the library does with null; here it is an empty string unless that loses the
                // calls. Where the two differ, the rendering must be that of an empty string.
                (_, Ok(got)) if which == "tool_null_content" && *got == render_empty(&template, given, case) => {
                    nulls += 1
                }
                (Some(want), Ok(got)) if MARKUP.contains(&name.as_str()) && unescape(want) == *got => known += 1,
                (want, got) => {
                    let why = match got {
                        Ok(got) => want.map_or_else(
                            || format!("no error, wanted {}", case["error"]),
                            |want| difference(want, got),
                        ),
                        Err(error) => error.clone(),
                    };
                    failures.push(format!("{name} / {which} {}: {why}", case["kwargs"]));
                }
            }
        }
    }
    println!(
        "{passed} of {total} template cases; {nulls} with null as an empty string; {known} without Python's HTML escapes"
    );
    for failure in &failures {
        println!("  {failure}");
    }
    assert!(failures.is_empty(), "{} of {total} cases differ", failures.len());
}

/// Templates that add marked-safe and other strings: Python's library escapes the others for HTML, which serves no model.
const MARKUP: [&str; 1] = ["meetkai-functionary-medium-v3.1"];

fn unescape(text: &str) -> String {
    text.replace("&#34;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace("&amp;", "&")
}

fn render_empty(template: &Result<ChatTemplate, String>, given: &Value, case: &Value) -> String {
    let mut conversation = conversation(given, case);
    for message in &mut conversation.messages {
        message.content.get_or_insert_default();
    }
    let template = template.as_ref().expect("it rendered before");
    template.render(&conversation).unwrap_or_else(|error| error.to_string())
}

fn conversation(given: &Value, case: &Value) -> Conversation {
    let mut kwargs = case["kwargs"].as_object().expect("kwargs").clone();
    let add_generation_prompt =
        kwargs.shift_remove("add_generation_prompt").and_then(|value| value.as_bool()).unwrap_or(false);
    let messages = given["messages"].as_array().expect("messages").iter();
    Conversation {
        messages: messages.map(|message| Message::from_json(message.clone()).expect("a message")).collect(),
        tools: given.get("tools").cloned(),
        documents: None,
        add_generation_prompt,
        prefill: None,
        kwargs,
        // 2026-01-15 12:34:56
        now: Some(1_768_480_496),
    }
}

fn difference(want: &str, got: &str) -> String {
    let at = want
        .char_indices()
        .zip(got.chars())
        .find(|((_, a), b)| a != b)
        .map_or(want.len().min(got.len()), |((at, _), _)| at);
    let cut = |text: &str| text.get(at..).unwrap_or_default().chars().take(60).collect::<String>();
    let before: String = want[..at].chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
    format!("after {before:?} wanted {:?}, got {:?}", cut(want), cut(got))
}

fn chat(turns: &[(&str, &str)]) -> Conversation {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    Conversation { messages, ..Default::default() }
}

fn own_template() -> ChatTemplate {
    let source = std::fs::read_to_string(fixtures().join("text/template.jinja")).expect("readable");
    ChatTemplate::new(&source, [("bos_token".to_owned(), "<s>".to_owned())].into()).expect("compiles")
}

#[test]
fn a_template_renders_what_python_renders() {
    let mut call = Message { role: "assistant".into(), content: None, ..Default::default() };
    // Arguments come as JSON in a string; the template wants an object.
    call.extra.insert(
        "tool_calls".into(),
        json!([{"function": {"name": "find", "arguments": "{\"query\": \"é <b> \\\"q\\\"\", \"limit\": 3, \"exact\": null, \"near\": [1.0, 1e-7]}"}}]),
    );
    let chat = Conversation {
        messages: vec![
            Message::new("system", "  Use tools. "),
            Message::new("user", "{{ not_a_variable }} {% raw %}"),
            call,
            Message::new("tool", "[]"),
            Message::new("assistant", "<think>\nhm\n</think>\n\nNothing."),
            Message::new("user", "Thanks"),
        ],
        tools: Some(json!([{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}])),
        add_generation_prompt: true,
        kwargs: json!({"enable_thinking": false}).as_object().expect("an object").clone(),
        ..Default::default()
    };
    // Made with jinja2 3.1.6 and transformers' tojson.
    let want = std::fs::read_to_string(fixtures().join("text/expected.txt")).expect("readable");
    assert_eq!(own_template().render(&chat).expect("renders"), want);
    let twice = self::chat(&[("user", "a"), ("user", "b")]);
    let error = own_template().render(&twice).expect_err("refused").to_string();
    assert!(error.contains("roles must alternate"), "{error}");
}

#[test]
fn hostile_templates_end_with_an_error() {
    let render = |source: &str| {
        let template =
            ChatTemplate::new(source, Default::default()).map_err(|error| format!("does not compile: {error}"))?;
        template.render(&chat(&[("user", "x")])).map_err(|error| error.to_string())
    };
    let start = std::time::Instant::now();
    for (source, word) in [
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% set c = b %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", "bytes"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{% include 'x' %}", ""),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ strftime_now('%Y') }}", "clock"),
        ("{{ messages[0].content.nope() }}", ""),
        ("{% for %}", "compile"),
        (&"(".repeat(100_000), ""),
    ] {
        if source.starts_with('(') {
            // Text, not an expression: it is printed.
            assert_eq!(render(source).expect("prints").len(), 100_000);
            continue;
        }
        let start = std::time::Instant::now();
        let error = render(source).expect_err(source);
        println!("{:?} {error}", start.elapsed());
        assert!(error.contains(word), "{source}: {error}");
    }
    assert!(render(&format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000))).is_err());
    println!("hostile templates took {:?}", start.elapsed());
}

#[test]
fn deep_tools_are_refused_or_rendered_on_a_small_stack() {
    let mut deep = json!({"type": "string"});
    for _ in 0..120 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    let source = "{% macro walk(s) %}{{ s.type }}{% if s.properties %}{{ walk(s.properties.a) }}{% endif %}{% endmacro %}{{ walk(tools) }}{{ tools | tojson }}";
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        let template = ChatTemplate::new(source, Default::default()).expect("compiles");
        let conversation = Conversation { tools: Some(deep), ..chat(&[("user", "x")]) };
        template.render(&conversation).map(|text| text.len())
    });
    let result = thread.expect("a thread").join().expect("no panic, no overflow");
    println!("{result:?}");
}
