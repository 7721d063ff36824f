//! Owns the registry of model families: one table. Knows how to find a family by name and how to tell which known name
//! is nearest to an unknown one.

use crate::loader::Loader;
use crate::{Config, Error, Model, Result, families};

/// How a family is recognised and built.
pub struct Family {
    /// Name, and `model_type` of its `config.json`.
    pub name: &'static str,
    /// Entries of `architectures` in `config.json`.
    pub architectures: &'static [&'static str],
    /// `general.architecture` of GGUF files.
    pub gguf: &'static [&'static str],
    /// GGUF files of this family are stored for rotated pairs (2i, 2i + 1).
    pub gguf_interleaved: bool,
    /// Values of keys that `config.json` leaves out, a JSON object: the library's defaults.
    pub defaults: &'static str,
    pub build: fn(&Config, &mut Loader<'_>) -> Result<Box<dyn Model>>,
}

/// Every family this crate knows.
pub const FAMILIES: &[Family] = &[
    families::apertus::FAMILY,
    families::arcee::FAMILY,
    families::bamba::FAMILY,
    families::cohere::COHERE,
    families::cohere::COHERE2,
    families::deepseek::V2,
    families::deepseek::V3,
    families::ernie4_5::FAMILY,
    families::ernie4_5_moe::FAMILY,
    families::exaone4::FAMILY,
    families::falcon_h1::FAMILY,
    families::gemma::GEMMA,
    families::gemma::GEMMA2,
    families::gemma::GEMMA3,
    families::gemma4::FAMILY,
    families::glm4::FAMILY,
    families::glm4_moe::FAMILY,
    families::gpt2::FAMILY,
    families::gpt_neox::FAMILY,
    families::gpt_oss::FAMILY,
    families::granite::FAMILY,
    families::granite::MOE,
    families::granite_hybrid::FAMILY,
    families::hunyuan::FAMILY,
    families::lfm2::LFM2,
    families::lfm2::MOE,
    families::llama::FAMILY,
    families::llama4::FAMILY,
    families::mamba2::FAMILY,
    families::minimax_m2::FAMILY,
    families::mistral::FAMILY,
    families::mixtral::MIXTRAL,
    families::mixtral::QWEN3_MOE,
    families::nemotron::FAMILY,
    families::nemotron_h::FAMILY,
    families::olmo::OLMO2,
    families::olmo::OLMO3,
    families::olmoe::FAMILY,
    families::phi::FAMILY,
    families::phi3::FAMILY,
    families::qwen2::FAMILY,
    families::qwen2_moe::FAMILY,
    families::qwen3::FAMILY,
    families::qwen3_next::NEXT,
    families::qwen3_next::QWEN3_5,
    families::seed_oss::FAMILY,
    families::smollm3::FAMILY,
    families::stablelm::FAMILY,
    families::starcoder2::FAMILY,
];

/// Encoders and scorers: models that give vectors, not tokens.
pub(crate) const ENCODERS: &[Family] = &[
    families::bert::BERT,
    families::bert::XLM_ROBERTA,
    families::gemma::GEMMA3_EMBEDDING,
    families::modernbert::FAMILY,
    families::qwen3::EMBEDDING,
];

impl Family {
    /// The encoder of a `config.json`, as [`Self::of_config`] finds decoders.
    ///
    /// # Errors
    /// [`Error::Architecture`] for a name that is not known.
    pub(crate) fn encoder_of_config(architectures: &[&str]) -> Result<&'static Self> {
        let name = architectures.first().ok_or_else(|| Error::file("config.json", "architectures is missing"))?;
        if let Some(family) = ENCODERS.iter().find(|f| f.architectures.contains(name)) {
            return Ok(family);
        }
        let known: Vec<&str> = ENCODERS.iter().flat_map(|f| f.architectures).copied().collect();
        let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
        Err(Error::Architecture(format!(
            "architecture {shown} is no embedding model that is known; these are: {}",
            known.join(", ")
        )))
    }

    /// The family of a `config.json`: by the first of `architectures`, or by `model_type` when there are none.
    ///
    /// # Errors
    /// [`Error::Architecture`] for a name that is not known.
    pub(crate) fn of_config(architectures: &[&str], model_type: Option<&str>) -> Result<&'static Self> {
        match (architectures.first(), model_type) {
            (Some(name), _) => by_name(name, |f| f.architectures),
            (None, Some(kind)) => by_name(kind, |f| std::slice::from_ref(&f.name)),
            (None, None) => Err(Error::file("config.json", "architectures is missing")),
        }
    }

    /// The family of a wrapped model's text: by the wrapper's `architectures`, else by the text's own `model_type`.
    ///
    /// # Errors
    /// [`Error::Architecture`] for a name that is not known.
    pub(crate) fn of_wrapped(architectures: &[&str], text_type: Option<&str>) -> Result<&'static Self> {
        let own = |kind: &str| FAMILIES.iter().find(|f| f.name == kind || kind.strip_suffix("_text") == Some(f.name));
        match (Self::of_config(architectures, text_type), text_type.and_then(own)) {
            (Err(_), Some(family)) => Ok(family),
            (found, _) => found,
        }
    }

    /// The family of a GGUF architecture.
    ///
    /// # Errors
    /// [`Error::Architecture`] for a name that is not known.
    pub(crate) fn of_gguf(name: &str) -> Result<&'static Self> {
        by_name(name, |f| f.gguf)
    }
}

fn by_name(wanted: &str, names: impl Fn(&'static Family) -> &'static [&'static str]) -> Result<&'static Family> {
    if let Some(family) = FAMILIES.iter().find(|f| names(f).contains(&wanted)) {
        return Ok(family);
    }
    let all = FAMILIES.iter().flat_map(|f| names(f).iter().map(move |name| (distance(wanted, name), *name)));
    let nearest = all.min().map_or("none", |(_, name)| name);
    let shown: String = wanted.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(Error::Architecture(format!(
        "architecture {shown} is not known; the nearest that is: {nearest}. To add a family, see models/src/families and \
         the FAMILIES table in models/src/family.rs"
    )))
}

/// Edits from one name to the other, letter case aside.
fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.chars().take(80).map(|c| c.to_ascii_lowercase()).collect::<Vec<char>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, edits) in [("kitten", "sitting", 3), ("", "abc", 3), ("Flaw", "lawn", 2), ("same", "SAME", 0)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn unknown_architectures_are_told_in_one_line() {
        let error = Family::of_config(&["LamaForCausalLM"], None).err().unwrap().to_string();
        assert!(error.contains("LamaForCausalLM is not known; the nearest that is: LlamaForCausalLM"), "{error}");
        assert_eq!(error.lines().count(), 1);
        assert_eq!(Family::of_config(&[], Some("llama")).unwrap().name, "llama");
    }
}
