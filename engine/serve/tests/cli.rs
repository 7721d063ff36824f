//! The binary: flags, exit codes, messages for broken models, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[test]
fn help_and_version() {
    let help = serve(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout);
    assert_eq!(help.status.code(), Some(0));
    for word in
        ["Model:", "Server:", "Device:", "Scheduling:", "Examples:", "--max-num-seqs", "DUALGAUGE_MODEL", "HF_HOME"]
    {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    let version = serve(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn secrets_are_not_in_the_help() {
    let help = Command::new(binary()).arg("--help").env("DUALGAUGE_API_KEY", "opensesame").output().expect("runs");
    assert!(!String::from_utf8_lossy(&help.stdout).contains("opensesame"));
}

#[test]
fn wrong_flags_are_named() {
    for (flags, named) in [
        (&["--port", "x"][..], "--port"),
        (&["--port", "70000"], "--port"),
        (&["--dtype", "q3"], "--dtype"),
        (&["--device", "gpu"], "--device"),
        (&["--threads", "0"], "--threads"),
        (&["--cpu-affinity", "0-3;8"], "--cpu-affinity"),
        (&["--max-model-len", "-1"], "--max-model-len"),
        (&["--max-num-seqs", "many"], "--max-num-seqs"),
        (&["--kv-cache-memory-bytes", "lots"], "--kv-cache-memory-bytes"),
        (&["--drain-timeout", "-1"], "--drain-timeout"),
        (&["--tool-parser", "poem"], "--tool-parser"),
        (&["--reasoning-parser", "poem"], "--reasoning-parser"),
        (&["--colour"], "--colour"),
        (&["surplus"], "surplus"),
    ] {
        let output = serve(flags);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(said.contains(named), "{flags:?}: {said}");
    }
    let output = Command::new(binary()).env("DUALGAUGE_PORT", "x").output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--port"));
}

#[test]
fn a_missing_model_is_one_line() {
    let output = serve(&["--model", "/nowhere/to-be-found", "--offline"]);
    let line = only_line(&output);
    assert!(line.contains("to-be-found"), "{line}");
}

#[test]
fn broken_files_are_named() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 9] = [
        ("model.safetensors", |f| truncate(&f.join("model.safetensors"), 1000)),
        ("model.safetensors", |f| truncate(&f.join("model.safetensors"), 0)),
        ("model.safetensors", |f| overwrite(&f.join("model.safetensors"), &[0xff; 64])),
        ("model.safetensors", |f| std::fs::remove_file(f.join("model.safetensors")).expect("it was there")),
        ("config.json", |f| std::fs::remove_file(f.join("config.json")).expect("it was there")),
        ("config.json", |f| overwrite(&f.join("config.json"), b"{")),
        ("config.json", |f| overwrite(&f.join("config.json"), b"[]")),
        ("tokenizer.json", |f| std::fs::remove_file(f.join("tokenizer.json")).expect("it was there")),
        ("tokenizer.json", |f| overwrite(&f.join("tokenizer.json"), b"{\"model\": 5}")),
    ];
    for (file, damage) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        copy_model(folder.path());
        damage(folder.path());
        let begun = Instant::now();
        let output = serve(&["--device", "cpu", "--port", "0", "--model", folder.path().to_str().expect("text")]);
        let line = only_line(&output);
        assert!(line.contains(file), "{file}: {line}");
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("broken.gguf");
    for bytes in [&b""[..], b"GGUF", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        std::fs::write(&file, bytes).expect("a file");
        let line = only_line(&serve(&["--device", "cpu", "--model", file.to_str().expect("text")]));
        assert!(line.contains("broken.gguf"), "{line}");
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    if Path::new("/dev/neuron0").exists() {
        eprintln!("skipped: this machine has a Neuron device");
        return;
    }
    let model = fixture();
    let line = only_line(&serve(&["--device", "neuron", "--model", model.to_str().expect("text")]));
    assert!(line.contains("neuron"), "{line}");
}

#[test]
fn more_threads_than_processors_are_refused() {
    let model = fixture();
    let model = model.to_str().expect("text");
    let line = only_line(&serve(&["--device", "cpu", "--threads", "2000", "--port", "0", "--model", model]));
    assert!(line.contains("2000 compute threads") && line.contains("this process may use"), "{line}");
}

#[test]
fn a_processor_that_is_not_there_is_named() {
    let model = fixture();
    let model = model.to_str().expect("text");
    let line = only_line(&serve(&["--device", "cpu", "--cpu-affinity", "1023", "--port", "0", "--model", model]));
    assert!(line.contains("processors 1023") && line.contains("this process may use"), "{line}");
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let model = fixture();
    let line = only_line(&serve(&["--port", &port, "--model", model.to_str().expect("text")]));
    assert!(line.contains(&port) && line.contains("--port"), "{line}");
}

#[test]
fn the_start_says_what_was_found_and_sigterm_ends_well() {
    let mut server = Server::start(&["--seed", "1"]);
    for word in ["device", "model", "weights", "K/V", "tokens fit", "arena", "context 512", "start", "listen"] {
        assert!(server.report.contains(word), "{word} in\n{}", server.report);
    }
    assert!(!server.report.contains("WARNING"));
    assert!(server.get("/health").starts_with("HTTP/1.1 200"));
    server.signal("-TERM");
    assert_eq!(server.code(Duration::from_secs(10)), Some(0));
}

#[test]
fn an_open_address_without_keys_is_warned_about() {
    let open = Server::start(&["--host", "0.0.0.0"]);
    assert!(open.report.contains("WARNING") && open.report.contains("--api-key"), "{}", open.report);
    let guarded = Server::start(&["--host", "0.0.0.0", "--api-key", "k"]);
    assert!(!guarded.report.contains("WARNING"));
    assert!(guarded.get("/v1/models").starts_with("HTTP/1.1 401"));
}

/// Threads that compute are bound, others are not; K/V memory is not touched before it is used.
#[test]
#[cfg(target_os = "linux")]
fn threads_are_bound_and_memory_is_taken_as_it_is_used() {
    let allowed = processors("/proc/self/status");
    let (first, last) = allowed.split_once(['-', ',']).unwrap_or((&allowed, &allowed));
    let second = last.split([',', '-']).next().filter(|second| *second != first);
    let list = second.map_or(first.to_owned(), |second| format!("{first},{second}"));
    let threads = if second.is_some() { "2" } else { "1" };
    let server = Server::start(&["--cpu-affinity", &list, "--threads", threads, "--kv-cache-memory-bytes", "1g"]);
    assert!(server.report.contains("bound to processor"), "{}", server.report);
    assert!(server.report.contains("1024.0 MiB in"), "{}", server.report);
    let answer = server.post("/v1/completions", r#"{"prompt": "a", "ignore_eos": true, "max_tokens": 50}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let process = PathBuf::from(format!("/proc/{}", server.child.id()));
    let mut seen = 0;
    for task in std::fs::read_dir(process.join("task")).expect("tasks") {
        let task = task.expect("a task").path();
        // A thread may have ended since.
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue };
        let wanted = match name.trim() {
            "dualgauge-engin" => first, // names are cut at 15 characters
            "cpu-1" => second.expect("one thread has no worker"),
            _ => &allowed,
        };
        seen += usize::from(wanted != allowed);
        assert_eq!(processors(task.join("status")), wanted, "{name}");
    }
    assert_eq!(seen, if second.is_some() { 2 } else { 0 }, "compute threads");

    let pages = std::fs::read_to_string(process.join("statm")).expect("a process");
    let resident: u64 = pages.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("resident pages");
    assert!(resident * 4096 < 512 << 20, "{resident} pages of a reserved GiB and some");
}

#[test]
fn sigterm_waits_for_the_running_and_the_second_signal_does_not() {
    let mut server = Server::start(&[]);
    let body = r#"{"prompt": "a", "n": 64, "ignore_eos": true, "max_tokens": 500, "stream": true}"#;
    let mut running = server.connect();
    write!(running, "POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("sent");
    let mut first = [0; 12];
    running.read_exact(&mut first).expect("an answer begins");
    assert_eq!(&first, b"HTTP/1.1 200");
    server.signal("-TERM");
    std::thread::sleep(Duration::from_millis(100));
    let mut answer = String::new();
    // Either it is still running, then a second signal ends it, or the machine was quick and it finished in full.
    server.signal("-INT");
    let code = server.code(Duration::from_secs(5));
    let _ = running.read_to_string(&mut answer);
    match code {
        Some(130) => assert!(!answer.contains("[DONE]")),
        Some(0) => assert!(answer.contains("[DONE]")),
        other => panic!("exit code {other:?}"),
    }
}

/// A server of the fixture on a free port.
struct Server {
    child: Child,
    report: String,
    port: u16,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["--port", "0", "--device", "cpu", "--model"]).arg(fixture()).args(flags);
        for (flag, value) in [("--threads", "1"), ("--kv-cache-memory-bytes", "8m")] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.stderr(Stdio::piped());
        let mut server = Self { child: command.spawn().expect("runs"), report: String::new(), port: 0 };
        let mut lines = BufReader::new(server.child.stderr.take().expect("piped")).lines();
        while server.port == 0 {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {}", server.report)).expect("text");
            if let Some((_, rest)) = line.split_once("listening on http://") {
                server.port = rest.split([':', ' ']).nth(1).and_then(|p| p.parse().ok()).expect("a port");
            }
            server.report += &(line + "\n");
        }
        // What comes later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        server
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).expect("it listens")
    }

    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = self.connect();
        let head = format!("POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json");
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill").success());
    }

    fn code(&mut self, within: Duration) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it did not end within {within:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(flags: &[&str]) -> Output {
    Command::new(binary()).args(flags).output().expect("runs")
}

/// The one line that a failed start may say, with exit code 2.
fn only_line(output: &Output) -> String {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one line: {said}");
    assert!(said.starts_with("serve: "), "{said}");
    said
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_serve")
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families/llama")
}

/// What `Cpus_allowed_list` of a status file says.
#[cfg(target_os = "linux")]
fn processors(status: impl AsRef<Path>) -> String {
    let status = std::fs::read_to_string(status).expect("a status file");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
    list.trim().to_owned()
}

fn copy_model(to: &Path) {
    for entry in std::fs::read_dir(fixture()).expect("the fixture") {
        let from = entry.expect("an entry").path();
        // Written anew: the fixture may be read-only.
        std::fs::write(to.join(from.file_name().expect("a name")), std::fs::read(&from).expect("a file"))
            .expect("a copy");
    }
}

fn truncate(file: &Path, length: u64) {
    std::fs::OpenOptions::new().write(true).open(file).and_then(|f| f.set_len(length)).expect("truncated");
}

fn overwrite(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).expect("written");
}
