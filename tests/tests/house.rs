//! Guards the architecture: who may import whom, where foreign crates, `unsafe` and the environment may appear, how
//! large a file may be. Reads manifests and source text; runs nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates of the workspace: folder, name, which of its own crates it may use, which foreign ones it must not.
const CRATES: [(&str, &str, &[&str], &[&str]); 8] = [
    ("kernels", KERNELS, &[], &["tokio", "axum", "hyper", "tokenizers", "minijinja", "safetensors", "clap"]),
    ("kernels/xtask", "dualgauge-xtask", &[KERNELS], &["tokio", "axum", "candle-core"]),
    ("models", MODELS, &[KERNELS], &["tokio", "axum", "hyper", "cudarc", "clap"]),
    ("engine", ENGINE, &[KERNELS, MODELS], &["axum", "hyper", "tower", "clap", "serde", "candle-core", "cudarc"]),
    ("engine/serve", SERVE, &[KERNELS, MODELS, ENGINE], &["candle-core", "cudarc", "rayon", "tokenizers"]),
    ("bench", "dualgauge-bench", &[KERNELS, MODELS, ENGINE, SERVE], &[]),
    ("tests/neuron_sim", SIM, &[], &["tokio", "axum"]),
    ("tests", "dualgauge-tests", &[KERNELS, MODELS, ENGINE, SERVE, SIM], &[]),
];
const KERNELS: &str = "dualgauge-kernels";
const MODELS: &str = "dualgauge-models";
const ENGINE: &str = "dualgauge";
const SERVE: &str = "dualgauge-serve";
const SIM: &str = "dualgauge-neuron-sim";

/// Words of code, and the files or folders they may appear in. Tests and benches are free.
const PLACES: [(&str, &[&str]); 8] = [
    ("candle_core", &["kernels/src/reference/", "models/src/source/gguf.rs", "models/src/source/gguf/"]),
    ("cudarc", &["kernels/src/cuda/"]),
    ("libloading", &["kernels/src/cuda/", "kernels/src/neuron/nrt.rs"]),
    ("memmap2", &["models/src/source/mapping.rs"]),
    ("unsafe", &["kernels/src/cpu/", "kernels/src/cuda/", "kernels/src/neuron/nrt.rs", "models/src/source/mapping.rs"]),
    ("env::var", &["engine/serve/src/args.rs"]),
    ("env::vars", &["engine/serve/src/args.rs"]),
    ("env::var_os", &["engine/serve/src/args.rs"]),
];

const MOST_LINES: usize = 800;
const AIMED_LINES: usize = 400;
const FAMILY_LINES: usize = 200;

#[test]
fn crates_import_downwards_only() {
    let root = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let members = root.lines().find_map(|l| l.strip_prefix("members = [")).expect("the manifest lists its members");
    let members: Vec<&str> = members.trim_end_matches(']').split(',').map(|m| m.trim().trim_matches('"')).collect();
    let own = CRATES.map(|c| c.1);
    let mut broken = vec![];
    for member in members {
        let Some((_, own_name, allowed, banned)) = CRATES.iter().find(|c| c.0 == member) else {
            broken.push(format!("{member}: no rule says what this crate may use"));
            continue;
        };
        let path = self::root().join(member).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{member}/Cargo.toml: {e}"));
        if !manifest.contains(&format!("\nname = \"{own_name}\"\n")) {
            broken.push(format!("{member} is not named {own_name}"));
        }
        for name in dependencies(&manifest) {
            let upward = own.contains(&name.as_str()) && !allowed.contains(&name.as_str());
            if upward || banned.contains(&name.as_str()) {
                broken.push(format!("{member} must not depend on {name}"));
            }
        }
    }
    report("imports", &broken);
}

#[test]
fn candle_brings_no_cuda() {
    let root = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let candle = root.lines().find(|l| l.starts_with("candle-core")).expect("the oracle is candle-core");
    assert!(candle.contains("default-features = false") && !candle.contains("cuda"), "candle-core: {candle}");
}

#[test]
fn foreign_words_stay_in_their_places() {
    let mut broken = vec![];
    for (path, text) in sources().into_iter().filter(|(path, _)| is_product(path)) {
        let code = code(&text);
        for (word, places) in PLACES {
            if !places.iter().any(|p| path.starts_with(p))
                && let Some(line) = code.lines().position(|l| has_word(l, word))
            {
                broken.push(format!("{path}:{}: `{word}` belongs in {}", line + 1, places.join(", ")));
            }
        }
    }
    report("places", &broken);
}

#[test]
fn devices_are_private_behind_open() {
    let lib = fs::read_to_string(root().join("kernels/src/lib.rs")).expect("kernels has a root");
    let code = code(&lib);
    for device in ["cpu", "cuda", "neuron", "null", "reference"] {
        assert!(!code.contains(&format!("pub mod {device};")), "kernels: the module {device} is not private");
    }
}

/// Plans are functions of their arguments: no clock, no chance.
#[test]
fn the_scheduler_has_no_hidden_inputs() {
    let pure = ["engine/src/scheduler.rs", "engine/src/sampler.rs", "engine/src/sequence.rs", "engine/src/kv/"];
    let mut broken = vec![];
    for (path, text) in sources().into_iter().filter(|(path, _)| pure.iter().any(|p| path.starts_with(p))) {
        for (i, line) in code(&text).lines().enumerate() {
            if ["Instant::now", "SystemTime", "thread_rng", "RandomState", "Backend"].iter().any(|w| has_word(line, w))
            {
                broken.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    report("clock, chance or device", &broken);
}

#[test]
fn nothing_is_left_undone() {
    let mut broken = vec![];
    for (path, text) in sources() {
        for (i, line) in code(&text).lines().enumerate() {
            if ["todo!", "unimplemented!", "dbg!"].iter().any(|w| has_word(line, w)) {
                broken.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    report("undone", &broken);
}

#[test]
fn files_are_small_and_say_what_they_own() {
    let (mut broken, mut long) = (vec![], vec![]);
    for (path, text) in sources() {
        let lines = text.lines().count();
        if !text.starts_with("//!") {
            broken.push(format!("{path}: does not open with what it owns (`//!`)"));
        }
        if lines > MOST_LINES {
            broken.push(format!("{path}: {lines} lines, {MOST_LINES} are the most"));
        } else if lines > AIMED_LINES {
            long.push(format!("{path}: {lines}"));
        }
        let family = path.starts_with("models/src/families/") && !path.ends_with("/mod.rs");
        if family && lines >= FAMILY_LINES {
            broken.push(format!("{path}: {lines} lines, a family has fewer than {FAMILY_LINES}"));
        }
        let name = path.rsplit('/').next().unwrap_or(&path);
        if ["utils.rs", "util.rs", "helpers.rs", "helper.rs", "misc.rs", "manager.rs"].contains(&name) {
            broken.push(format!("{path}: a file is named after what it owns"));
        }
    }
    println!("files over {AIMED_LINES} lines: {long:#?}");
    report("files", &broken);
}

/// What a developer's machine looks like is nobody's business.
#[test]
fn no_paths_of_a_machine() {
    let places = ["home", "work", "root", "tmp/models", "Users"].map(|p| format!("\"/{p}/"));
    let mut broken = vec![];
    for (path, text) in sources() {
        for (i, line) in text.lines().enumerate() {
            if places.iter().any(|p| line.contains(p)) {
                broken.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    report("paths", &broken);
}

#[test]
fn the_guard_reads_code_and_not_prose() {
    let text = "a // unsafe\nb /* unsafe\n /* */ */ c \"unsafe \\\" unsafe\" r#\"unsafe \"x\" \"# 'x' '\"' '\\'' &'a unsafe_code\nunsafe {";
    let lines: Vec<String> = code(text).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    let hits: Vec<usize> = (0..4).filter(|i| has_word(&lines[*i], "unsafe")).collect();
    assert_eq!(hits, [3], "{lines:?}");
    assert!(lines[2].contains(" c ") && lines[2].contains("&'a unsafe_code"), "{lines:?}");
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\nb = \"1\"\n[dev-dependencies]\nc = { path = \"c\" }\n[lints]\nd = 1\n";
    assert_eq!(dependencies(manifest), ["a", "b", "c"]);
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live in the workspace").to_owned()
}

/// Code that ships, as opposed to tests and benches.
fn is_product(path: &str) -> bool {
    !path.starts_with("tests/") && !path.starts_with("bench/") && !path.contains("/tests/")
}

/// Every Rust file of the workspace: path from the root, and text.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut found = vec![];
    let mut open: Vec<PathBuf> = ["kernels", "models", "engine", "bench", "tests"].map(|f| root.join(f)).to_vec();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let name = path.strip_prefix(&root).expect("under the root").to_string_lossy().replace('\\', "/");
                found.push((name, text));
            }
        }
    }
    assert!(found.len() > 50, "only {} files found: the guard looks in the wrong place", found.len());
    found.sort();
    found
}

/// Names in all sections of dependencies.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = vec![];
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            names.push(line.split(['.', '=', ' ']).next().unwrap_or(line).to_owned());
        }
    }
    names
}

/// Whether `word` stands in `line` on its own, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.chars().next_back().is_some_and(part) && !after.chars().next().is_some_and(part)
    })
}

/// The text without comments and without what is in string and character literals. Lines stay where they are.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => 1 + literal_end(&rest[1..], '"'),
            'r' if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => raw_string(rest).unwrap_or(0),
            '\'' => character(rest).unwrap_or(0),
            _ => 0,
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    out
}

/// Length of a comment that may hold others.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    text.len()
}

/// Length up to and with the closing `quote` that is not escaped.
fn literal_end(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of `r"..."`, `r#"..."#` and so on, if it is one.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let body = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let at = body.find(&end).unwrap_or(body.len());
    Some((2 + hashes + at + end.len()).min(text.len()))
}

/// Length of a character literal; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let mut chars = text[1..].chars();
    let first = chars.next()?;
    match first == '\\' || chars.next() == Some('\'') {
        true => Some(1 + literal_end(&text[1..], '\'')),
        false => None,
    }
}
