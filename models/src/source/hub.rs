//! Owns models of the Hugging Face hub: the layout of its cache, which files of a repository a model needs, and their
//! download. It knows no preset. Nothing of a repository is executed, and only plain file names are fetched.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::locate::{Locations, Report};
use super::lock::Lock;

const ENDPOINT: &str = "https://huggingface.co";
/// A hub that has not said a word for so long is not there.
const FIRST_ANSWER: Duration = Duration::from_secs(8);
/// A download that stands still for so long has failed; it goes on from there the next time.
const STALLED: Duration = Duration::from_secs(60);
const RETRIES: usize = 3;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Small files that a model may have.
const OPTIONAL: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"];

/// `org/name` or `org/name@revision`, of harmless characters only.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HubId {
    organisation: String,
    name: String,
    revision: Option<String>,
}

impl HubId {
    /// An id of the default revision. Only for names that are known to be plain.
    pub(super) fn new(organisation: &str, name: &str) -> Self {
        Self { organisation: organisation.to_owned(), name: name.to_owned(), revision: None }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (organisation, name) = id.split_once('/')?;
        let revision_is_plain = revision.is_none_or(|revision| revision.split('/').all(is_plain));
        if !is_plain(organisation) || !is_plain(name) || !revision_is_plain {
            return None;
        }
        Some(Self { revision: revision.map(str::to_owned), ..Self::new(organisation, name) })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// The snapshot in the hub's cache, when it has all that a model needs. Asks nobody: a revision that moved on the hub is
/// not noticed.
pub(super) fn cached(id: &HubId, locations: &Locations) -> Option<PathBuf> {
    let repository = hub_dir(locations).join(format!("models--{}--{}", id.organisation, id.name));
    let snapshots = repository.join("snapshots");
    let commit = match std::fs::read_to_string(repository.join("refs").join(id.revision())) {
        Ok(commit) => commit.trim().to_owned(),
        // A revision may be a commit itself.
        Err(_) => id.revision.clone()?,
    };
    is_plain(&commit).then(|| snapshots.join(commit)).and_then(|folder| complete(&folder))
}

/// Downloads what is missing. The error is the reason alone.
pub(super) fn fetch(id: &HubId, locations: &Locations, report: &mut dyn Report) -> Result<PathBuf, String> {
    if locations.offline {
        return Err("not tried, offline mode is on".to_owned());
    }
    let endpoint = locations.hf_endpoint.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| ENDPOINT.to_owned());
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        return Err(format!("the endpoint {endpoint:?} must begin with https:// or http://"));
    }
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let folder = format!("{}--{}", id.organisation, id.name);
    let _lock = Lock::take(&locations.models_dir().join(folder), &id.to_string(), report)?;
    if let Some(folder) = cached(id, locations) {
        return Ok(folder);
    }
    let cache = Cache::new(hub_dir(locations));
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(RETRIES);
    builder = builder.with_endpoint(endpoint.clone()).with_user_agent("dualgauge", env!("CARGO_PKG_VERSION"));
    if let Some(token) = locations.hf_token.clone().filter(|token| !token.is_empty()) {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|error| describe(&error, &endpoint))?;
    let (sender, events) = mpsc::channel();
    let id = id.clone();
    report.begin(&format!("list of files of {id} from the hub"));
    // The library has no time limits of its own, so it works on a thread that can be left behind.
    let worker = {
        let endpoint = endpoint.clone();
        move || {
            let done = download(&api, &cache, &id, &sender).map_err(|error| error.describe(&endpoint));
            // Nobody listens any more when the wait was given up.
            let _ = sender.send(Event::Done(done));
        }
    };
    std::thread::Builder::new().name("hub".to_owned()).spawn(worker).map_err(|error| error.to_string())?;
    let mut limit = FIRST_ANSWER;
    loop {
        match events.recv_timeout(limit) {
            Ok(Event::Begin(file)) => report.begin(&format!("{file} from the hub")),
            Ok(Event::Bytes(done, total)) => report.bytes(done, total),
            Ok(Event::Done(done)) => return done,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("no answer from {endpoint} within {} seconds", limit.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(format!("the download from {endpoint} broke off")),
        }
        limit = STALLED;
    }
}

enum Event {
    Begin(String),
    Bytes(u64, u64),
    Done(Result<PathBuf, String>),
}

enum Failure {
    Api(ApiError),
    Other(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Failure {
    fn describe(self, endpoint: &str) -> String {
        match self {
            Self::Api(error) => describe(&error, endpoint),
            Self::Other(reason) => reason,
        }
    }
}

fn download(api: &Api, cache: &Cache, id: &HubId, events: &Sender<Event>) -> Result<PathBuf, Failure> {
    let named = Repo::with_revision(id.repository(), RepoType::Model, id.revision().to_owned());
    let info = api.repo(named.clone()).info()?;
    if !is_plain(&info.sha) {
        return Err(Failure::Other("the hub names a commit that is no plain name".to_owned()));
    }
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    // All files of one commit, even when the branch moves meanwhile.
    let repo = api.repo(Repo::with_revision(id.repository(), RepoType::Model, info.sha.clone()));
    let here = cache.repo(Repo::with_revision(id.repository(), RepoType::Model, info.sha.clone()));
    let mut folder = None;
    for file in wanted(&files).map_err(Failure::Other)? {
        let path = match here.get(&file) {
            Some(path) => path,
            None => {
                let _ = events.send(Event::Begin(file.clone()));
                repo.download_with_progress(&file, Relay { events: events.clone(), done: 0, total: 0 })?
            }
        };
        folder = path.parent().map(Path::to_path_buf);
    }
    cache.repo(named).create_ref(&info.sha).map_err(ApiError::from)?;
    folder.as_deref().and_then(complete).ok_or_else(|| Failure::Other("the files do not make a whole model".to_owned()))
}

/// The files of a repository that a model needs. Weights in formats that may hold code are never taken.
fn wanted(files: &[String]) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let plain = |kind: &str| -> Vec<String> {
        files.iter().filter(|file| file.ends_with(kind) && is_plain(file)).cloned().collect()
    };
    let safetensors = plain(".safetensors");
    let mut list: Vec<String> = OPTIONAL.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
    if !has(CONFIG) || safetensors.is_empty() {
        let gguf = plain(".gguf");
        return match gguf.as_slice() {
            [one] => Ok(vec![one.clone()]),
            [] => {
                Err("it has no safetensors and no .gguf file (other formats can hold code and are not read)".to_owned())
            }
            many => Err(format!("it has {} .gguf files: download one and give its path with --model", many.len())),
        };
    }
    if !has(TOKENIZER) {
        return Err("it has no tokenizer.json".to_owned());
    }
    list.extend([CONFIG.to_owned(), TOKENIZER.to_owned()]);
    if has(INDEX) {
        list.push(INDEX.to_owned());
        list.extend(safetensors.into_iter().filter(|file| file.starts_with("model-") || file == SINGLE));
    } else if has(SINGLE) {
        list.push(SINGLE.to_owned());
    } else {
        list.extend(safetensors);
    }
    Ok(list)
}

/// What to open of a snapshot that is whole: the folder, or its one GGUF file.
fn complete(folder: &Path) -> Option<PathBuf> {
    if folder.join(CONFIG).is_file() && folder.join(TOKENIZER).is_file() {
        let whole = match std::fs::read(folder.join(INDEX)) {
            Ok(index) => shards(&index)?.iter().all(|shard| folder.join(shard).is_file()),
            Err(_) => has_kind(folder, "safetensors").next().is_some(),
        };
        return whole.then(|| folder.to_path_buf());
    }
    let mut files = has_kind(folder, "gguf");
    let first = files.next()?;
    files.next().is_none().then_some(first)
}

fn has_kind(folder: &Path, kind: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).ok().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(move |path| path.is_file() && path.extension().is_some_and(|extension| extension == kind))
}

fn shards(index: &[u8]) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let names = index.get("weight_map")?.as_object()?.values().map(|name| name.as_str().filter(|name| is_plain(name)));
    names.map(|name| name.map(str::to_owned)).collect()
}

/// One name of letters, digits, `_`, `-` and `.`, that is no hidden and no parent folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn hub_dir(locations: &Locations) -> PathBuf {
    locations.hub_home().join("hub")
}

/// Sends a download's progress to the thread that waits.
struct Relay {
    events: Sender<Event>,
    done: u64,
    total: u64,
}

impl Progress for Relay {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let _ = self.events.send(Event::Bytes(self.done, self.total));
    }

    fn finish(&mut self) {}
}

fn describe(error: &ApiError, endpoint: &str) -> String {
    let text = error.to_string();
    // The library tells the status only in its text.
    let status = text.rsplit("http status: ").next().filter(|_| text.contains("http status: "));
    match status.and_then(|status| status.get(..3)) {
        Some("401" | "403") => {
            format!("{endpoint} wants a token for it: set HF_TOKEN (and accept the model's terms there)")
        }
        Some("404") => format!("{endpoint} does not have it, or not this revision"),
        Some(status) => format!("{endpoint} answered with status {status}"),
        None => match error {
            ApiError::LockAcquisition(_) => "another tool is downloading it right now".to_owned(),
            _ => format!("{endpoint} cannot be used: {}", text.trim_start_matches("request error: ")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_names() {
        let id = HubId::parse("org/name.v1@refs/pr/1").expect("an id");
        assert_eq!((id.repository().as_str(), id.revision()), ("org/name.v1", "refs/pr/1"));
        assert_eq!(HubId::parse("org/name").expect("an id").revision(), "main");
        for bad in [
            "name",
            "a/b/c",
            "../x",
            "a/..",
            "a/b@../../x",
            "a/b@",
            "a//b",
            "/a/b",
            "a/b c",
            "a/b\0",
            "",
            "a/b@/x",
            ".",
        ] {
            assert_eq!(HubId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_what_a_model_needs_is_wanted() {
        let list = |names: &[&str]| wanted(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let got = list(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "chat_template.jinja",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "onnx/model.safetensors",
            "../model-x.safetensors",
            "pytorch_model.bin",
        ]);
        assert_eq!(
            got.expect("a model"),
            [
                "chat_template.jinja",
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]
        );
        assert!(list(&["config.json", "tokenizer.json", "pytorch_model.bin"]).expect_err("no code").contains("code"));
        assert_eq!(list(&["m.gguf", "README.md"]).expect("one"), ["m.gguf"]);
        assert!(list(&["a.gguf", "b.gguf"]).is_err());
    }
}
