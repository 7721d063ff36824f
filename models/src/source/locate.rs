//! Owns the way from what a user calls a model to files on this machine: a folder, a `.gguf` file, a hub id or a preset.
//! It knows no file's content, reads no environment, and shows nothing: progress goes to a [`Report`].

use std::path::{Path, PathBuf};

use super::hub::{self, HubId};
use super::preset::Preset;
use crate::{Error, Result};

/// Where models are looked for and kept, as the caller's environment says.
#[derive(Clone, Debug, Default)]
pub struct Locations {
    /// `$XDG_CACHE_HOME` or `~/.cache`. Models from packages are kept in `dualgauge/models` below it.
    pub cache_dir: PathBuf,
    /// `HF_HOME`; without it `huggingface` below `cache_dir`, as other tools have it.
    pub hf_home: Option<PathBuf>,
    /// `HF_TOKEN`; without it the file `token` in the hub's home is used when it is there.
    pub hf_token: Option<String>,
    /// `HF_ENDPOINT`; without it the public hub.
    pub hf_endpoint: Option<String>,
    /// The Python with pip; empty means `python3`.
    pub python: PathBuf,
    /// Nothing is fetched: only what is on this machine counts.
    pub offline: bool,
}

/// Takes the progress of a search, to show it.
pub trait Report {
    /// Something that takes time begins: `model.safetensors from the hub`.
    fn begin(&mut self, what: &str);
    /// Bytes done of it, and all of them (0 while that is not known).
    fn bytes(&mut self, done: u64, total: u64);
    /// A fact worth a line, such as a source that failed.
    fn line(&mut self, text: &str);
}

/// Shows nothing.
impl Report for () {
    fn begin(&mut self, _: &str) {}
    fn bytes(&mut self, _: u64, _: u64) {}
    fn line(&mut self, _: &str) {}
}

/// The preset that is taken when no model is named.
pub const DEFAULT_PRESET: &str = "smollm2-135m";

/// Finds a model: the folder or `.gguf` file to open. What is not on this machine is fetched. A name that is a path here
/// is that path; then come presets, then hub ids `org/name[@revision]`. `None` is [`DEFAULT_PRESET`].
///
/// # Errors
/// When the name is none of these, or no source has the model: then the one message says which were tried, why each
/// failed and what to do.
pub fn locate(model: Option<&str>, locations: &Locations, report: &mut dyn Report) -> Result<PathBuf> {
    let name = model.unwrap_or(DEFAULT_PRESET);
    if model.is_some()
        && let Some(path) = here(name)?
    {
        return Ok(path);
    }
    if let Some(preset) = Preset::named(name) {
        return preset.locate(locations, report);
    }
    match HubId::parse(name) {
        Some(id) => hub_model(&id, locations, report),
        None => Err(Error::Source(format!(
            "{name:?} is no model: there is no such file or folder, it is no hub id (org/name or org/name@revision), and \
             no preset ({})",
            Preset::names()
        ))),
    }
}

impl Locations {
    /// Folder for models that are not from the hub.
    pub(super) fn models_dir(&self) -> PathBuf {
        self.cache_dir.join("dualgauge").join("models")
    }

    /// The hub's home, shared with other tools.
    pub(super) fn hub_home(&self) -> PathBuf {
        self.hf_home.clone().unwrap_or_else(|| self.cache_dir.join("huggingface"))
    }
}

fn hub_model(id: &HubId, locations: &Locations, report: &mut dyn Report) -> Result<PathBuf> {
    if let Some(folder) = hub::cached(id, locations) {
        return Ok(folder);
    }
    let mut tried = Tried::new(format!("no source has the model {id}"));
    tried.failed("the local cache of the hub", "it is not there, or not all of it");
    match hub::fetch(id, locations, report) {
        Ok(folder) => Ok(folder),
        Err(why) => {
            tried.failed("the hub", why);
            Err(tried.error(
                "check the name, the network and (for gated models) HF_TOKEN, set HF_ENDPOINT to a mirror of the hub, or \
                 give a folder or a .gguf file with --model",
            ))
        }
    }
}

/// The model at a path: `None` when there is nothing and the name need not be a path.
fn here(name: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(name);
    let Ok(metadata) = std::fs::metadata(path) else {
        let must_be_path =
            path.is_absolute() || name.starts_with('.') || name.starts_with('~') || name.ends_with(".gguf");
        if must_be_path {
            return Err(Error::file(name, "there is no such file or folder"));
        }
        return Ok(None);
    };
    if metadata.is_dir() {
        return folder(path, name).map(Some);
    }
    if !metadata.is_file() || path.extension().is_none_or(|kind| !kind.eq_ignore_ascii_case("gguf")) {
        return Err(Error::file(name, "a model is a folder with config.json and safetensors, or a .gguf file"));
    }
    Ok(Some(path.to_path_buf()))
}

/// The folder itself, or the one GGUF file in a folder without `config.json`.
fn folder(path: &Path, name: &str) -> Result<PathBuf> {
    if path.join("config.json").is_file() {
        return Ok(path.to_path_buf());
    }
    let entries = std::fs::read_dir(path).map_err(|error| Error::file(name, error))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.is_file() && file.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf")))
        .collect();
    files.sort();
    match files.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::file(name, "the folder has no config.json and no .gguf file")),
        many => {
            let names: Vec<_> =
                many.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy()).collect();
            Err(Error::file(name, format!("the folder has {} .gguf files, name one: {}", many.len(), names.join(", "))))
        }
    }
}

/// The sources that were tried, for the one message when all failed.
pub(super) struct Tried {
    message: String,
}

impl Tried {
    pub(super) fn new(headline: String) -> Self {
        Self { message: headline + ":" }
    }

    pub(super) fn failed(&mut self, source: &str, why: impl std::fmt::Display) {
        self.message.push_str(&format!("\n  {source}: {why}"));
    }

    pub(super) fn error(self, advice: &str) -> Error {
        Error::Source(format!("{}\nwhat to do: {advice}", self.message))
    }
}
