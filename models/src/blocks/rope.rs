//! Owns the upload of rotary frequencies. The arithmetic behind them is in [`crate::RopeConfig`].

use dualgauge_kernels::RopeSpec;

use crate::loader::Loader;
use crate::{Result, RopeConfig};

/// The rotation of one kind of layer; upload it once and share it.
///
/// # Errors
/// When the device refuses the table.
pub fn rope(loader: &mut Loader<'_>, config: &RopeConfig) -> Result<RopeSpec> {
    let table = config.table();
    let freqs = loader.constant("rope.freqs", &table.freqs)?;
    let long = table.long.as_ref().map(|long| loader.constant("rope.long_freqs", long)).transpose()?;
    Ok(RopeSpec { freqs, long, interleaved: config.interleaved, magnitude: table.magnitude })
}
