//! Expected values are written by hand from what the models' publishers document.

use serde_json::{Value, json};

use super::{CallFormat, ToolSpec};
use crate::text::answer::{AnswerParser, AnswerPart, Reading};
use crate::text::reasoning::ReasoningFormat;

fn tools() -> Vec<ToolSpec> {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "opts": {"type": "object"}, "zip": {"type": "string"}}});
    let tool = |name: &str| ToolSpec {
        name: name.into(),
        description: None,
        parameters: Some(parameters.clone()),
        strict: false,
    };
    vec![tool("get_weather"), tool("now")]
}

fn reading(calls: CallFormat, reasoning: Option<&str>) -> Reading {
    let reasoning = reasoning.map(|name| ReasoningFormat::named(name).expect("a format"));
    Reading { calls, reasoning, tools: tools(), separate: true, begun: false }
}

/// Text, reasoning, and name and arguments of each call.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    reasoning: String,
    calls: Vec<(String, String)>,
}

fn said(reading: &Reading, pieces: &[&str]) -> Said {
    let mut parser = AnswerParser::new(reading.clone());
    let mut said = Said::default();
    let mut parts: Vec<AnswerPart> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    for part in parts {
        match part {
            AnswerPart::Text(text) => said.text += &text,
            AnswerPart::Reasoning(text) => said.reasoning += &text,
            AnswerPart::Call { name, .. } => said.calls.push((name, String::new())),
            AnswerPart::Arguments(text) => said.calls.last_mut().expect("a call is open").1 += &text,
        }
    }
    said
}

/// However the text is cut: in one piece, in characters, and in pieces of several lengths.
fn in_all_ways(reading: &Reading, text: &str) -> Said {
    let whole = said(reading, &[text]);
    let characters: Vec<&str> = text.split_inclusive(|_: char| true).collect();
    for length in [1, 2, 3, 5, 7, 11] {
        let pieces: Vec<String> = characters.chunks(length).map(|chunk| chunk.concat()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(said(reading, &pieces), whole, "{text:?} in pieces of {length}");
    }
    whole
}

fn check(format: CallFormat, text: &str, wanted_text: &str, wanted: &[(&str, Value)]) {
    let said = in_all_ways(&reading(format, None), text);
    assert_eq!(said.text, wanted_text, "{format:?}: {text:?}");
    let calls: Vec<(&str, Value)> = said
        .calls
        .iter()
        .map(|(name, json)| (name.as_str(), serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"))))
        .collect();
    assert_eq!(calls, wanted, "{format:?}: {text:?}");
}

/// A text, the words in it, its calls.
type Case = (CallFormat, &'static str, &'static str, Vec<(&'static str, Value)>);

#[test]
fn each_format_is_read() {
    let paris = || ("get_weather", json!({"city": "Paris", "days": 3}));
    let now = || ("now", json!({}));
    use CallFormat as F;
    let cases: Vec<Case> = vec![
        (
            F::Hermes,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}\n</tool_call>",
            "",
            vec![paris()],
        ),
        (
            F::Hermes,
            "Let me see.\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>\n<tool_call>\n{\"arguments\": {\"city\": \"Paris\", \"days\": 3}, \"name\": \"get_weather\"}\n</tool_call>",
            "Let me see.",
            vec![now(), paris()],
        ),
        (F::Hermes, "<tool_call>\n{\"name\": \"now\"}\n</tool_call>", "", vec![now()]),
        (
            F::Hermes,
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\", \\\"days\\\": 3}\"}</tool_call> Done.",
            "Done.",
            vec![paris()],
        ),
        (
            F::Hermes,
            "<tool_call>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}]</tool_call>",
            "",
            vec![now(), paris()],
        ),
        (
            F::LlamaJson,
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": 3}}",
            "",
            vec![paris()],
        ),
        (
            F::LlamaJson,
            "<|python_tag|>{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}",
            "",
            vec![now(), now()],
        ),
        (F::Pythonic, "[get_weather(city=\"Paris\", days=3), now()]", "", vec![paris(), now()]),
        (
            F::Pythonic,
            "<|python_start|>[get_weather(city='Paris', opts={'a': [1, -2.5e3], 'b': None}, zip=\"0\\n1\")]<|python_end|>",
            "",
            vec![("get_weather", json!({"city": "Paris", "opts": {"a": [1, -2.5e3], "b": null}, "zip": "0\n1"}))],
        ),
        (F::Lfm, "Ok <|tool_call_start|>[now()]<|tool_call_end|>", "Ok", vec![now()]),
        (
            F::MistralList,
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}, \"id\": \"abcdefghi\"}, {\"name\": \"now\", \"arguments\": {}}]",
            "",
            vec![paris(), now()],
        ),
        (
            F::MistralNamed,
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\", \"days\": 3}[TOOL_CALLS]now[CALL_ID]123456789[ARGS]{}",
            "",
            vec![paris(), now()],
        ),
        (
            F::DeepSeek,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\", \"days\": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "",
            vec![paris(), now()],
        ),
        (
            F::DeepSeek31,
            "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "Hm.",
            vec![paris(), now()],
        ),
        (
            F::Kimi,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\", \"days\": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            "",
            vec![paris(), now()],
        ),
        (
            F::Gemma,
            "<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>",
            "",
            vec![paris(), now()],
        ),
        (
            F::Phi,
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}]<|/tool_call|>",
            "",
            vec![paris()],
        ),
        (F::Phi, "functools[{\"name\": \"now\", \"arguments\": {}}]", "", vec![now()]),
        (
            F::Granite,
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}, {\"name\": \"now\", \"arguments\": {}}]",
            "",
            vec![paris(), now()],
        ),
        (F::Nemotron, "<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>", "", vec![now()]),
        (
            F::Cohere,
            "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": 3}}\n]<|END_ACTION|>",
            "",
            vec![paris()],
        ),
        (
            F::Glm,
            "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
            "",
            vec![paris(), now()],
        ),
        (
            F::Glm,
            "<tool_call>get_weather<arg_key>zip</arg_key><arg_value>010</arg_value></tool_call>",
            "",
            vec![("get_weather", json!({"zip": "010"}))],
        ),
        (
            F::Coder,
            "I will look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            "I will look.",
            vec![paris()],
        ),
        (F::Coder, "<function=now>\n</function>\n</tool_call>", "", vec![now()]),
        (
            F::Harmony,
            "<|channel|>analysis<|message|>Weather.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\", \"days\": 3}<|call|>",
            "",
            vec![paris()],
        ),
        (F::Harmony, " to=functions.now<|channel|>commentary json<|message|>{}<|call|>", "", vec![now()]),
        (
            F::Harmony,
            "<|channel|>commentary<|message|>First I look.<|end|><|start|>assistant<|channel|>final<|message|>Sunny.<|return|>",
            "First I look.Sunny.",
            vec![],
        ),
    ];
    for (format, text, words, calls) in cases {
        check(format, text, words, &calls);
    }
}

#[test]
fn what_is_no_call_is_text() {
    use CallFormat as F;
    let cases = [
        (F::Hermes, "<tool_call>not json</tool_call>"),
        (F::Hermes, "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>"),
        (F::Hermes, "<tool_call>{\"nom\": \"now\"}</tool_call>"),
        (F::Hermes, "<tool_call>"),
        (F::Hermes, "<tool_call>{\"name\": \"no"),
        (F::Hermes, "a < b, <tool, <tool_cal and {\"name\": \"now\"}"),
        (F::LlamaJson, "{\"answer\": [1, 2]} is what I found"),
        (F::LlamaJson, "{ is a brace"),
        (F::LlamaJson, "The object {\"name\": \"now\", \"parameters\": {}} calls it."),
        (F::Pythonic, "[1, 2, 3]"),
        (F::Pythonic, "[now(] "),
        (F::Pythonic, "[unknown(a=1)]"),
        (F::Pythonic, "[get_weather(city=open(\"x\"))]"),
        (F::MistralList, "[TOOL_CALLS] sorry"),
        (F::MistralNamed, "[TOOL_CALLS]unknown[ARGS]{}"),
        (F::DeepSeek, "<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>"),
        (F::DeepSeek31, "<｜tool▁call▁begin｜>get_weather"),
        (F::Kimi, "<|tool_calls_section_begin|>x"),
        (F::Gemma, "<|tool_call>call:now{a:}<tool_call|>"),
        (F::Glm, "<tool_call>get_weather<arg_key>city</arg_key>Paris</tool_call>"),
        (F::Coder, "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
        (F::Granite, "<|tool_call|> none"),
        (F::Hermes, "é€😀 <tool_call é"),
    ];
    for (format, text) in cases {
        let said = in_all_ways(&reading(format, None), text);
        assert_eq!((said.text.trim(), said.calls.len()), (text.trim(), 0), "{format:?}: {text:?}");
    }
}

#[test]
fn arguments_that_are_cut_off_stay_a_call() {
    let said = in_all_ways(
        &reading(CallFormat::Hermes, None),
        "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par",
    );
    assert_eq!(said.calls, [("get_weather".to_owned(), "{\"city\": \"Par".to_owned())]);
    assert_eq!(said.text, "");
}

#[test]
fn arguments_are_told_before_the_call_has_ended() {
    let mut parser = AnswerParser::new(reading(CallFormat::Hermes, None));
    let told = parser.push("<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": ");
    let call = AnswerPart::Call { name: "get_weather".into(), id: None };
    assert_eq!(told, [call, AnswerPart::Arguments("{\"city\": ".into())]);
    assert_eq!(parser.push("\"P"), [AnswerPart::Arguments("\"P".into())]);
}

#[test]
fn reasoning_is_told_apart() {
    let think = |text: &str| in_all_ways(&reading(CallFormat::Hermes, Some("think")), text);
    let call = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    let said = think(&format!("<think>\nI could {call}.\n</think>\n\nHere: {call}"));
    assert_eq!((said.reasoning.as_str(), said.text.as_str()), (&*format!("I could {call}."), "Here:"));
    assert_eq!(said.calls.len(), 1, "what is only thought of is no call");
    let none = think("No <think> here </think>");
    assert_eq!((none.reasoning.as_str(), none.text.as_str()), ("", "No <think> here </think>"));
    let open = think("<think>without an end");
    assert_eq!((open.reasoning.as_str(), open.text.as_str()), ("without an end", ""));

    let begun = Reading { begun: true, ..reading(CallFormat::Hermes, Some("think")) };
    let said = in_all_ways(&begun, "so be it</think>yes");
    assert_eq!((said.reasoning.as_str(), said.text.as_str()), ("so be it", "yes"));

    // Not separate: as the model wrote it, and calls in it are still none.
    let kept = Reading { separate: false, ..reading(CallFormat::Hermes, Some("think")) };
    let text = format!("<think>\n{call}\n</think>\n\nyes");
    let said = in_all_ways(&kept, &text);
    assert_eq!((said.text.as_str(), said.calls.len()), (text.as_str(), 0));

    let mistral = in_all_ways(&reading(CallFormat::MistralNamed, Some("mistral")), "[THINK]hm[/THINK]ok");
    assert_eq!((mistral.reasoning.as_str(), mistral.text.as_str()), ("hm", "ok"));
    let harmony = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>ok";
    let harmony = in_all_ways(&reading(CallFormat::Harmony, Some("harmony")), harmony);
    assert_eq!((harmony.reasoning.as_str(), harmony.text.as_str()), ("hm", "ok"));
    let plain = in_all_ways(&reading(CallFormat::Harmony, Some("harmony")), "no channels at all");
    assert_eq!(plain.text, "no channels at all");
}

/// Marks, brackets and quotes in any order: nothing panics, nothing takes long, and cuts change nothing.
#[test]
fn hostile_texts_are_only_texts() {
    let mut state = 7u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let common = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        ",",
        ":",
        "(",
        ")",
        "=",
        "name",
        "arguments",
        "now",
        "get_weather",
        "é",
        " ",
        "\n",
        "1",
        "<",
        "</",
    ];
    for name in CallFormat::names() {
        let format = CallFormat::named(name).expect("a name");
        for _ in 0..60 {
            let text: String = (0..next(40))
                .map(|_| match next(3) {
                    0 if !format.marks().is_empty() => format.marks()[next(format.marks().len())],
                    _ => common[next(common.len())],
                })
                .collect();
            in_all_ways(&reading(format, Some("think")), &text);
        }
    }
    let deep = format!("[get_weather(opts={})]", "[".repeat(100_000));
    assert_eq!(said(&reading(CallFormat::Pythonic, None), &[&deep]).calls.len(), 0);
    let long = format!("<tool_call>{{\"name\": \"{}", "x".repeat(1 << 20));
    assert_eq!(said(&reading(CallFormat::Hermes, None), &[&long]).text, long);
}

#[test]
fn templates_show_their_format() {
    use CallFormat as F;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/templates/jinja");
    let wanted = [
        ("Qwen-Qwen2.5-7B-Instruct", F::Hermes, None),
        ("Qwen-Qwen3-0.6B", F::Hermes, Some("think")),
        ("Qwen3-Coder", F::Coder, None),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", F::Hermes, None),
        ("meta-llama-Llama-3.1-8B-Instruct", F::LlamaJson, None),
        ("meta-llama-Llama-3.2-3B-Instruct", F::LlamaJson, None),
        ("mistralai-Mistral-Nemo-Instruct-2407", F::MistralList, None),
        ("mistralai-Ministral-3-14B-Reasoning-2512", F::MistralNamed, Some("mistral")),
        ("llama-cpp-deepseek-r1", F::DeepSeek, Some("think")),
        ("deepseek-ai-DeepSeek-V3.1", F::DeepSeek31, Some("think")),
        ("google-gemma-4-31B-it", F::Gemma, Some("gemma4")),
        ("ibm-granite-granite-3.3-2B-Instruct", F::Granite, Some("think")),
        ("ibm-granite-granite-4.0", F::Hermes, None),
        ("GLM-4.6", F::Glm, Some("think")),
        ("openai-gpt-oss-120b", F::Harmony, Some("harmony")),
        ("Kimi-K2-Instruct", F::Kimi, None),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", F::Cohere, Some("cohere")),
        ("ByteDance-Seed-OSS", F::Coder, Some("seed")),
        ("SmolLM2-135M-Instruct", F::Hermes, None),
    ];
    for (name, calls, reasoning) in wanted {
        let Ok(source) = std::fs::read_to_string(folder.join(format!("{name}.jinja"))) else {
            println!("skipped, its text is not here: {name}");
            continue;
        };
        assert_eq!(CallFormat::of_template(&source), calls, "{name}");
        assert_eq!(ReasoningFormat::of_template(&source), reasoning.and_then(ReasoningFormat::named), "{name}");
    }
}
