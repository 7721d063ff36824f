//! Owns how the rows of a text become one vector, as the files of sentence-transformers say it. Knows no model.

use std::path::Path;

use crate::config::Keys;
use crate::source::read_text;
use crate::{Error, Result};

/// How the rows of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    pub pool: Pool,
    /// Divide by the length.
    pub normalise: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The mean of all rows.
    Mean,
    /// The first row.
    First,
    /// The last row.
    Last,
}

const MODULES: &str = "modules.json";
const MAX_BYTES: u64 = 1 << 20;

impl Pooling {
    /// Reads `modules.json` and the configuration of its pooling. Without them it is the first row as it is: a scorer's.
    ///
    /// # Errors
    /// When a file is broken, or asks for what is not known.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut made = Self { pool: Pool::First, normalise: false };
        let Some(text) = read_text(&folder.join(MODULES), MAX_BYTES)? else { return Ok(made) };
        let keys = Keys::parse(MODULES, &format!("{{\"modules\": {text}}}"))?;
        let modules = keys.value("modules").and_then(|v| v.as_array().cloned()).unwrap_or_default();
        for module in modules {
            let text = |key: &str| module[key].as_str().unwrap_or_default().to_string();
            match text("type").rsplit('.').next() {
                Some("Transformer") => {}
                Some("Normalize") => made.normalise = true,
                Some("Pooling") => made.pool = Pool::read(folder, &text("path"))?,
                other => {
                    let reason = format!("the module {:?} is not supported", other.unwrap_or_default());
                    return Err(Error::file(MODULES, reason));
                }
            }
        }
        Ok(made)
    }
}

impl Pool {
    fn read(folder: &Path, path: &str) -> Result<Self> {
        // A name inside of the folder, not a way out of it.
        if path.is_empty() || !path.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::file(MODULES, format!("the path {path:?} of a module is no plain name")));
        }
        let name = format!("{path}/config.json");
        let text = read_text(&folder.join(path).join("config.json"), MAX_BYTES)?;
        let keys = Keys::parse(&name, &text.ok_or_else(|| Error::file(&name, "not found in the model folder"))?)?;
        let modes = [("mean_tokens", Self::Mean), ("cls_token", Self::First), ("lasttoken", Self::Last)];
        let mut wanted = vec![];
        for (mode, pool) in modes {
            if keys.flag(&format!("pooling_mode_{mode}"))? {
                wanted.push(pool);
            }
        }
        match wanted[..] {
            [pool] => Ok(pool),
            _ => Err(keys.fail("pooling_mode", "is not one of mean_tokens, cls_token and lasttoken")),
        }
    }
}
