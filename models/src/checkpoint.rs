//! Owns a model on disk before it is on a device: which family it is, its configuration, its open files. Knows no
//! device until [`Checkpoint::load`] is given one.

use std::path::{Path, PathBuf};

use dualgauge_kernels::Backend;

use crate::config::{Keys, eos};
use crate::family::Family;
use crate::loader::{Loader, WeightDtype, Weights};
use crate::quant::Quantised;
use crate::source::{Gguf, Safetensors, file_name, read_text};
use crate::{Config, Error, Model, Pooling, Result, Text};

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// An opened checkpoint: everything about it is known but its weights are still in the files.
pub struct Checkpoint {
    /// Name of the folder or file, without `.gguf`.
    pub name: String,
    pub config: Config,
    family: &'static Family,
    left_out: Vec<&'static str>,
    weights: Weights,
    path: PathBuf,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and safetensors, or a `.gguf` file. Reads headers only.
    ///
    /// # Errors
    /// When a file is missing or broken, or the architecture is not known. The error names the file.
    pub fn open(path: &Path) -> Result<Self> {
        match std::fs::metadata(path) {
            Err(e) => Err(Error::file(file_name(path), format!("cannot be opened: {e}"))),
            Ok(meta) if meta.is_dir() => Self::open_folder(path),
            Ok(_) => Self::open_gguf(path),
        }
    }

    /// Opens a folder with an embedding model or a scorer: what is said of it beside its configuration is how rows become
    /// one vector.
    ///
    /// # Errors
    /// As [`Self::open`]; when rows are made into a vector in a way that is not known.
    pub fn open_encoder(folder: &Path) -> Result<(Self, Pooling)> {
        let checkpoint = Self::open_folder_as(folder, |architectures, _, _| Family::encoder_of_config(architectures))?;
        Ok((checkpoint, Pooling::read(folder)?))
    }

    /// Name of the family in the registry.
    pub fn family(&self) -> &'static str {
        self.family.name
    }

    /// Parts of a wrapped model that are not loaded: `vision`, `audio`. It answers text alone.
    pub fn left_out(&self) -> &[&'static str] {
        &self.left_out
    }

    /// Bytes of the weights in the files.
    pub fn weights_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// The GGUF file, when this is one: its metadata holds the tokenizer.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.weights {
            Weights::Gguf(file) => Some(file),
            _ => None,
        }
    }

    /// The model's tokenizer and chat template: from the folder's files, or rebuilt from a GGUF file's metadata.
    ///
    /// # Errors
    /// When they are missing or broken.
    pub fn text(&self) -> Result<Text> {
        match &self.weights {
            Weights::Gguf(file) => Text::from_gguf(file.metadata()),
            _ => Text::open(&self.path),
        }
    }

    /// Uploads the weights to `backend`. `progress` is called with the bytes done and all of them.
    ///
    /// The pages of the files are given back as they are uploaded; drop the checkpoint after to unmap them.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape than the configuration says, or the device refuses it.
    pub fn load(
        &self,
        backend: &mut dyn Backend,
        dtype: WeightDtype,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Box<dyn Model>> {
        (self.family.build)(&self.config, &mut Loader::new(&self.weights, backend, dtype, progress))
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        Self::open_folder_as(folder, |architectures, kind, wrapped| match wrapped {
            true => Family::of_wrapped(architectures, kind),
            false => Family::of_config(architectures, kind),
        })
    }

    fn open_folder_as(
        folder: &Path,
        family: impl Fn(&[&str], Option<&str>, bool) -> Result<&'static Family>,
    ) -> Result<Self> {
        let Some(text) = read_text(&folder.join(CONFIG), MAX_CONFIG_BYTES)? else {
            return Err(Error::file(CONFIG, "not found in the model folder; a folder needs it beside its safetensors"));
        };
        let whole = Keys::parse(CONFIG, &text)?;
        let left_out = ["vision", "audio"].into_iter().filter(|part| whole.states(&format!("{part}_config"))).collect();
        let (keys, wrapped) = whole.unwrapped()?;
        let quantised = keys.object("quantization_config")?;
        let architectures = keys.texts("architectures")?.unwrap_or_default();
        let family = family(&architectures, keys.text("model_type")?, wrapped)?;
        let mut config = Config::new(keys, family)?;
        if let Some(text) = read_text(&folder.join(GENERATION), MAX_CONFIG_BYTES)? {
            let ids = eos(&Keys::parse(GENERATION, &text)?, config.vocab)?;
            if !ids.is_empty() {
                config.eos = ids;
            }
        }
        let files = Safetensors::open(folder)?;
        let weights = match quantised {
            Some(keys) => Weights::Quantised(Quantised::new(files, &keys)?),
            None => Weights::Safetensors(files),
        };
        // A folder given as `.` has a name, too.
        let name = std::fs::canonicalize(folder).map_or_else(|_| file_name(folder), |path| file_name(&path));
        Ok(Self { name, config, family, left_out, weights, path: folder.to_path_buf() })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        let architecture = file.architecture().to_string();
        let family = Family::of_gguf(&architecture)?;
        let config = Config::new(Keys::new(file.name(), file.config()?).of_gguf(&architecture), family)?;
        let name = file_name(path).trim_end_matches(".gguf").to_string();
        Ok(Self { name, config, family, left_out: vec![], weights: Weights::Gguf(file), path: path.to_path_buf() })
    }
}
