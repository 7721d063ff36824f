//! Owns the instruction-set paths: which there are, their names, and which of them this machine can run. Knows no kernel.
//!
//! There is no path for AMX: Rust's intrinsics and feature detection for it are unstable (as of 1.95), so processors that
//! have it run `avx512-bf16-vnni`.

use crate::{Error, Result};

/// A family of kernels. Which one runs is chosen once, when the device is opened.
///
/// Results differ between paths within the tolerance of a format, never within one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX-512 F, BW, VL, VNNI and BF16: Zen 4, Sapphire Rapids and later.
    Avx512Bf16Vnni,
    /// AVX-512 F, BW, VL and VNNI: Cascade Lake, Ice Lake.
    Avx512Vnni,
    /// AVX-512 F, BW and VL: Skylake.
    Avx512,
    /// AVX2, FMA, F16C and AVX-VNNI: Alder Lake and later.
    Avx2Vnni,
    /// AVX2, FMA and F16C: Haswell, Zen 1 to 3.
    Avx2,
    /// Plain Rust; right everywhere. What runs on aarch64.
    Portable,
}

impl Isa {
    const ALL: [Self; 6] =
        [Self::Avx512Bf16Vnni, Self::Avx512Vnni, Self::Avx512, Self::Avx2Vnni, Self::Avx2, Self::Portable];

    /// The best path of this machine.
    pub(crate) fn detect() -> Self {
        Self::paths()[0]
    }

    /// The paths that this machine can run, best first. `Portable` is always the last.
    pub(crate) fn paths() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.available()).collect()
    }

    /// The path of that name.
    ///
    /// # Errors
    /// When there is none, or this machine cannot run it.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let refused = |why: &str| {
            let names: Vec<_> = Self::paths().iter().map(|isa| isa.name()).collect();
            let reason = format!("instruction-set path `{name}` {why}; this machine can run: {}", names.join(", "));
            Err(Error::Unavailable { device: "cpu".into(), reason })
        };
        match Self::ALL.into_iter().find(|isa| isa.name() == name) {
            None => refused("does not exist"),
            Some(isa) if !isa.available() => refused("needs instructions that this processor lacks"),
            Some(isa) => Ok(isa),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16Vnni => "avx512-bf16-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512 => "avx512",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// True where the path's kernels may run. Whoever calls them has checked it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn available(self) -> bool {
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && Self::Avx2.available()
        };
        match self {
            Self::Avx512Bf16Vnni => Self::Avx512Vnni.available() && is_x86_feature_detected!("avx512bf16"),
            Self::Avx512Vnni => avx512() && is_x86_feature_detected!("avx512vnni"),
            Self::Avx512 => avx512(),
            Self::Avx2Vnni => Self::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn available(self) -> bool {
        self == Self::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_paths_parse_by_name_and_end_with_the_portable_one() {
        let paths = Isa::paths();
        assert_eq!(paths.last(), Some(&Isa::Portable));
        assert_eq!(paths[0], Isa::detect());
        for isa in paths {
            assert_eq!(Isa::parse(isa.name()).ok(), Some(isa));
        }
    }

    #[test]
    fn an_unknown_path_is_refused_with_those_there_are() {
        let message = Isa::parse("sse9").expect_err("there is no such path").to_string();
        assert!(message.contains("`sse9` does not exist") && message.contains("portable"), "{message}");
    }
}
