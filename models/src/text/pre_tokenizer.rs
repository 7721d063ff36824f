//! Owns the table from a GGUF file's `tokenizer.ggml.pre` to the rules by which that model's tokenizer cuts a text into
//! words before it merges bytes. The patterns are those of the models' own `tokenizer.json` files.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// How one family of tokenizers cuts text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    cut: Cut,
    /// A word that is a token is taken whole, without its merges.
    pub ignore_merges: bool,
    /// A bos token begins a text unless the file says otherwise.
    pub add_bos: bool,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// GPT-2's pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    DigitsGpt2,
    /// These patterns, one after the other.
    Patterns(&'static [&'static str]),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3_DIGITS: &str = r"\p{N}{1,3}";
const DEEPSEEK3_HAN: &str = r"[一-龥\u3040-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl Rules {
    /// Rules by name; without one those are taken that files had before there were names. Errors: an unknown name.
    pub(super) fn named(name: Option<&str>) -> Result<Self, String> {
        let rules = |cut: Cut| Self { cut, ignore_merges: false, add_bos: false };
        Ok(match name.unwrap_or("default") {
            "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "jina-es"
            | "jina-de" | "jina-v2-es" | "jina-v2-de" | "jina-v2-code" | "jina-v1-en" | "roberta-bpe" | "gigachat"
            | "modern-bert" | "a.x-4.0" | "mellum" | "exaone4" => rules(Cut::Gpt2),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                rules(Cut::DigitsGpt2)
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
                Self { ignore_merges: true, add_bos: true, ..rules(Cut::Patterns(&[LLAMA3])) }
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => rules(Cut::Patterns(&[LLAMA3])),
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" | "kormo" | "solar-open" | "grok-2" => {
                rules(Cut::Patterns(&[QWEN2]))
            }
            "qwen35" => rules(Cut::Patterns(&[QWEN35])),
            "tekken" => Self { ignore_merges: true, add_bos: true, ..rules(Cut::Patterns(&[TEKKEN])) },
            "gpt-4o" | "llama4" | "minimax-m2" => rules(Cut::Patterns(&[GPT4O])),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
                rules(Cut::Patterns(&[DEEPSEEK3_DIGITS, DEEPSEEK3_HAN, DEEPSEEK3]))
            }
            "deepseek-coder" => {
                rules(Cut::Patterns(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", r"\p{N}"]))
            }
            "default" => rules(Cut::Patterns(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])),
            "falcon" => rules(Cut::Patterns(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"])),
            other => {
                return Err(format!(
                    "tokenizer.ggml.pre {other:?} is not known; use the model's folder with tokenizer.json instead"
                ));
            }
        })
    }

    /// The pre-tokenizer, ending with the byte alphabet. Errors: a pattern that does not compile.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper, String> {
        let bytes = |pattern: bool| PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, pattern));
        let steps = match self.cut {
            Cut::Gpt2 => return Ok(bytes(true)),
            Cut::DigitsGpt2 => vec![PreTokenizerWrapper::Digits(Digits::new(true)), bytes(true)],
            Cut::Patterns(patterns) => {
                let mut steps = Vec::with_capacity(patterns.len() + 1);
                for pattern in patterns {
                    let pattern = SplitPattern::Regex((*pattern).to_owned());
                    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                    steps.push(PreTokenizerWrapper::Split(split.map_err(|error| error.to_string())?));
                }
                steps.push(bytes(false));
                steps
            }
        };
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }
}
