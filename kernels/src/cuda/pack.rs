//! Owns which device code runs on which GPU: packs made ahead of time by `cargo xtask kernels`, so that a machine needs
//! its driver and nothing else.

use std::io::Read;

use crate::{Error, Result};

/// Architecture, and its deflated cubin.
const PACKS: [(&str, &[u8]); 4] = [
    ("sm_80", include_bytes!("../../prebuilt/sm_80.pack")),
    ("sm_89", include_bytes!("../../prebuilt/sm_89.pack")),
    ("sm_90a", include_bytes!("../../prebuilt/sm_90a.pack")),
    ("sm_100a", include_bytes!("../../prebuilt/sm_100a.pack")),
];

/// Names of the architectures that packs exist for.
pub fn kernel_architectures() -> [&'static str; 4] {
    PACKS.map(|(arch, _)| arch)
}

/// The device code in a pack, for those who check it.
///
/// # Errors
/// The architecture has no pack, or the pack is broken.
pub fn kernel_pack(arch: &str) -> std::result::Result<Vec<u8>, String> {
    let (_, packed) = PACKS.iter().find(|(a, _)| *a == arch).ok_or(format!("there are no kernels for {arch}"))?;
    let mut image = vec![];
    flate2::read::DeflateDecoder::new(*packed).read_to_end(&mut image).map_err(|e| format!("{arch}: {e}"))?;
    Ok(image)
}

/// Device code for a GPU of this compute capability. Code for 8.0 runs on all of 8.x; `a` targets run on theirs alone.
pub(super) fn image((major, minor): (i32, i32)) -> Result<Vec<u8>> {
    let unavailable = |reason: String| Error::Unavailable { device: "cuda".into(), reason };
    let arch = match (major, minor) {
        (8, 9) => "sm_89",
        (8, _) => "sm_80",
        (9, 0) => "sm_90a",
        (10, 0) => "sm_100a",
        _ => {
            let known = "Ampere, Ada, Hopper and Blackwell data-centre GPUs (8.0 to 8.9, 9.0, 10.0)";
            return Err(unavailable(format!(
                "no kernels for compute capability {major}.{minor}; there are some for {known}"
            )));
        }
    };
    kernel_pack(arch).map_err(unavailable)
}
