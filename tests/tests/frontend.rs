//! Text in, text out: what is shown is what was generated, whole characters, up to the first stop string, however the
//! tokens cut it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dualgauge::{
    Engine, EngineConfig, Frontend, Piece, Prompt, Refused, Rejected, Sampling, Stop, TextRequest, Token, Usage,
};
use dualgauge_kernels::{NullOptions, null_with};
use dualgauge_models::{Checkpoint, Text, WeightDtype};

/// A tiny checkpoint with a byte-level tokenizer, on the null device: its tokens cut characters anywhere.
fn frontend(options: NullOptions) -> Frontend {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/families/llama");
    let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|e| panic!("{e}"));
    let mut backend = null_with(options);
    let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}).unwrap();
    let engine = Engine::start(backend, model, EngineConfig::default()).unwrap();
    Frontend::new(engine, Arc::new(checkpoint.text().unwrap()))
}

fn request(seed: u64, stop: &[&str]) -> TextRequest {
    let sampling = Sampling { max_tokens: Some(60), temperature: 1.0, seed, ignore_eos: true, ..Sampling::default() };
    let prompt = Prompt::Text { text: "Say anything".into(), add_special: false };
    TextRequest { stop: stop.iter().map(|s| s.to_string()).collect(), ..TextRequest::new(prompt, sampling) }
}

#[derive(Debug, Default)]
struct Shown {
    text: String,
    tokens: Vec<Token>,
    /// Bytes of text that were out when each token was.
    out_by: Vec<usize>,
    end: Option<(Stop, Usage)>,
}

fn show(frontend: &Frontend, request: TextRequest) -> Shown {
    let mut generation = frontend.generate(request).unwrap();
    let mut shown = Shown::default();
    while let Some(piece) = generation.next_blocking() {
        assert!(shown.end.is_none(), "{piece:?} comes after the end");
        match piece {
            Piece::Text { text, tokens } => {
                shown.text += &text;
                shown.out_by.extend(tokens.iter().map(|_| shown.text.len()));
                shown.tokens.extend(tokens);
            }
            Piece::Finished { reason, usage, .. } => shown.end = Some((reason, usage)),
            other => panic!("{other:?}"),
        }
    }
    shown
}

/// What the tokens say, by the tokenizer's own decoding of all of them at once.
fn decoded(text: &Text, tokens: &[Token]) -> String {
    text.decode(&tokens.iter().map(|t| t.id).collect::<Vec<_>>(), true)
}

#[test]
fn the_pieces_together_are_the_decoded_tokens() {
    let frontend = frontend(NullOptions::default());
    for seed in 0..50 {
        let shown = show(&frontend, request(seed, &[]));
        assert_eq!(shown.tokens.len(), 60);
        assert_eq!(shown.text, decoded(frontend.text(), &shown.tokens));
        assert_eq!(shown.end.as_ref().unwrap().0, Stop::Length);
        assert_eq!(shown.end.unwrap().1.completion_tokens, 60);
    }
}

#[test]
fn text_ends_before_the_first_stop_string_and_none_of_it_leaks() {
    let frontend = frontend(NullOptions::default());
    let (mut hits, mut across) = (0, 0);
    for seed in 0..60 {
        let whole = show(&frontend, request(seed, &[]));
        let chars: Vec<(usize, char)> = whole.text.char_indices().collect();
        for (at, len) in [(5, 1), (9, 3), (20, 4), (chars.len() / 2, 7)] {
            if at + len >= chars.len() {
                continue;
            }
            let stop: String = chars[at..at + len].iter().map(|(_, c)| c).collect();
            if stop.contains('\u{FFFD}') {
                // Stands for broken bytes; when a beginning of the tokens is decoded, also for unfinished ones.
                continue;
            }
            let cut = whole.text.find(&stop).unwrap();
            let shown = show(&frontend, request(seed, &[&stop, "never to be seen"]));
            assert_eq!(shown.text, whole.text[..cut], "stop {stop:?}");
            let (reason, usage) = shown.end.unwrap();
            assert_eq!(reason, Stop::StopString(stop.clone()));
            // As many tokens as it takes to write the match.
            let enough = |n: &usize| decoded(frontend.text(), &whole.tokens[..*n]).contains(&stop);
            assert_eq!(Some(usage.completion_tokens), (1..=60).find(enough), "stop {stop:?}");
            assert_eq!(shown.tokens[..], whole.tokens[..shown.tokens.len()]);
            assert!(shown.tokens.len() <= usage.completion_tokens);
            across += usize::from(shown.tokens.len() + 1 < usage.completion_tokens);
            hits += 1;
            // Asked for, the match is shown.
            let with = TextRequest { include_stop_text: true, ..request(seed, &[&stop]) };
            assert_eq!(show(&frontend, with).text, whole.text[..cut + stop.len()]);
        }
    }
    assert!(hits > 100 && across > 10, "{hits} matches, {across} of them across tokens");
}

#[test]
fn a_stop_string_that_does_not_come_holds_nothing_back() {
    let frontend = frontend(NullOptions::default());
    for seed in 0..20 {
        let whole = show(&frontend, request(seed, &[]));
        // The very last characters and one more: held to the end, then shown.
        let tail: String = whole.text.chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
        let shown = show(&frontend, request(seed, &[&format!("{tail}\u{1F6E4}never")]));
        assert_eq!((shown.text, shown.tokens), (whole.text, whole.tokens));
        assert_eq!(shown.end, whole.end);
    }
}

#[test]
fn tokens_come_no_earlier_than_their_text() {
    let frontend = frontend(NullOptions::default());
    let shown = show(&frontend, request(3, &["zzzz"]));
    for (i, out) in shown.out_by.iter().enumerate() {
        let text = decoded(frontend.text(), &shown.tokens[..=i]);
        let whole = text.trim_end_matches('\u{FFFD}');
        assert!(*out >= whole.len(), "token {i} came when {out} bytes were out, its text ends at {}", whole.len());
    }
}

#[test]
fn a_stop_string_frees_the_request() {
    let slow = NullOptions { launch_delay: Some(Duration::from_millis(2)), ..NullOptions::default() };
    let frontend = frontend(slow);
    let whole = show(&frontend, request(1, &[]));
    let first: String = whole.text.chars().take(1).collect();
    show(&frontend, request(1, &[&first]));
    let stopped = Instant::now();
    while frontend.engine().stats().blocks.held > 0 {
        assert!(stopped.elapsed() < Duration::from_secs(1), "blocks are held after the end");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(frontend.engine().stats().counters.finished_aborted, 1);
}

#[test]
fn stop_tokens_are_told_apart_and_not_shown() {
    let frontend = frontend(NullOptions::default());
    let whole = show(&frontend, request(1, &[]));
    let mut stopped = request(1, &[]);
    let id = whole.tokens[10].id;
    stopped.sampling.stop_ids = vec![id];
    let at = whole.tokens.iter().position(|t| t.id == id).unwrap();
    let shown = show(&frontend, stopped);
    assert_eq!(shown.end.unwrap().0, Stop::StopId(id));
    assert_eq!(shown.tokens[..], whole.tokens[..=at]);
    assert_eq!(shown.text, decoded(frontend.text(), &whole.tokens[..at]));
}

#[test]
fn prompts_that_cannot_be_are_refused() {
    let frontend = frontend(NullOptions::default());
    let refused = |request| frontend.generate(request).map(|_| ()).unwrap_err();
    let Refused::Rejected(Rejected::Invalid { field, .. }) = refused(request(1, &[""])) else { panic!() };
    assert_eq!(field, "stop");
    let empty = TextRequest { prompt: Prompt::Tokens(vec![]), ..request(1, &[]) };
    let Refused::Rejected(Rejected::Invalid { field, .. }) = refused(empty) else { panic!() };
    assert_eq!(field, "prompt");
}
