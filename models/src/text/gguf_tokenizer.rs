//! Owns the tokenizer inside a GGUF file: its metadata to the same encoder that `tokenizer.json` gives. It knows no file
//! format.

use std::collections::{BTreeMap, HashMap};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::AddedToken;

use super::pieces::Spelling;
use super::pre_tokenizer::Rules;
use super::tokenizer::Tokenizer;
use crate::Result;
use crate::source::Metadata;

/// The keys `tokenizer.ggml.*` (and `tokenizer.chat_template`) of a GGUF file, as they are.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `gpt2`: pairs with a space between, best first.
    pub merges: Vec<String>,
    /// `llama`: log-probabilities; a higher one is merged first.
    pub scores: Vec<f32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
/// Longest token of a SentencePiece vocabulary that is looked at for merges: each costs its length in look-ups.
const MAX_PIECE_BYTES: usize = 1024;

impl GgufVocabulary {
    /// Reads the metadata of a file. Errors: a key of another type than it should have, by name.
    pub fn read(metadata: &Metadata) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let texts = |name: &str| metadata.texts(&key(name)).map(|list| list.unwrap_or_default().to_vec());
        let kinds = metadata.ints(&key("token_type"))?.unwrap_or_default();
        Ok(Self {
            model: metadata.text(&key("model"))?.unwrap_or_default().to_owned(),
            pre: metadata.text(&key("pre"))?.map(str::to_owned),
            tokens: texts("tokens")?,
            // Kinds beyond the known ones are ordinary tokens.
            token_types: kinds.iter().map(|&kind| i32::try_from(kind).unwrap_or_default()).collect(),
            merges: texts("merges")?,
            scores: metadata.floats(&key("scores"))?.unwrap_or_default().to_vec(),
            bos: metadata.id(&key("bos_token_id"))?,
            eos: metadata.id(&key("eos_token_id"))?,
            unknown: metadata.id(&key("unknown_token_id"))?,
            padding: metadata.id(&key("padding_token_id"))?,
            add_bos: metadata.flag(&key("add_bos_token"))?,
            add_eos: metadata.flag(&key("add_eos_token"))?,
            add_space_prefix: metadata.flag(&key("add_space_prefix"))?,
            chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        })
    }

    /// Texts of the tokens that templates name.
    pub(super) fn named(&self) -> BTreeMap<String, String> {
        [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.padding), ("unk_token", self.unknown)]
            .into_iter()
            .filter_map(|(name, id)| Some((name.to_owned(), self.token(id?)?.to_owned())))
            .collect()
    }

    /// Builds the encoder. Errors: the reason alone, with the key.
    pub(super) fn into_tokenizer(self) -> Result<Tokenizer, String> {
        self.check()?;
        let strips_first_space = self.add_space_prefix.unwrap_or(true);
        let (mut inner, spelling) = match self.model.as_str() {
            "gpt2" => (self.byte_level()?, Spelling::ByteLevel),
            "llama" => (self.sentence_piece()?, Spelling::SentencePiece { strips_first_space, bytes: true }),
            other => {
                return Err(format!(
                    "tokenizer.ggml.model {other:?} is not supported; use the model's folder with tokenizer.json instead"
                ));
            }
        };
        let added = self.tokens.iter().zip(&self.token_types).filter_map(|(token, &kind)| {
            let special = match kind {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some(AddedToken::from(token.as_str(), special).normalized(false))
        });
        inner.add_tokens(added).map_err(|error| error.to_string())?;
        Tokenizer::new(inner, spelling)
    }

    fn check(&self) -> Result<(), String> {
        let count = self.tokens.len();
        if count == 0 {
            return Err("tokenizer.ggml.tokens is missing or empty".to_owned());
        }
        for (key, length) in [("token_type", self.token_types.len()), ("scores", self.scores.len())] {
            if length != 0 && length != count {
                return Err(format!("tokenizer.ggml.{key} has {length} entries for {count} tokens"));
            }
        }
        for (key, id) in [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("unknown_token_id", self.unknown),
            ("padding_token_id", self.padding),
        ] {
            if id.is_some_and(|id| id as usize >= count) {
                return Err(format!("tokenizer.ggml.{key} is beyond the {count} tokens"));
            }
        }
        Ok(())
    }

    fn byte_level(&self) -> Result<tokenizers::Tokenizer, String> {
        let rules = Rules::named(self.pre.as_deref())?;
        let merges = self
            .merges
            .iter()
            .map(|merge| {
                // The left part may itself be a space in some vocabularies.
                let at = merge.char_indices().skip(1).find(|&(_, character)| character == ' ').map(|(at, _)| at);
                let at = at.ok_or_else(|| format!("tokenizer.ggml.merges: {merge:?} is no pair"))?;
                Ok((merge[..at].to_owned(), merge[at + 1..].to_owned()))
            })
            .collect::<Result<Vec<_>, String>>()?;
        let bpe = BPE::builder()
            .vocab_and_merges(self.vocabulary(), merges)
            .ignore_merges(rules.ignore_merges)
            .build()
            .map_err(|error| format!("tokenizer.ggml.merges: {error}"))?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(rules.build()?));
        self.frame(&mut inner, rules.add_bos)?;
        Ok(inner)
    }

    fn sentence_piece(&self) -> Result<tokenizers::Tokenizer, String> {
        if self.scores.len() != self.tokens.len() {
            return Err("tokenizer.ggml.scores is missing".to_owned());
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocabulary(), self.merges_by_score())
            .byte_fallback(true)
            .fuse_unk(true);
        let kinds = self.token_types.iter().position(|&kind| kind == UNKNOWN);
        let unknown = self.unknown.map(|id| id as usize).or(kinds).and_then(|id| self.tokens.get(id));
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown.clone());
        }
        let mut inner = tokenizers::Tokenizer::new(builder.build().map_err(|error| error.to_string())?);
        let prefix = self.add_space_prefix.unwrap_or(true);
        let spaces = NormalizerWrapper::Replace(Replace::new(" ", "▁").map_err(|error| error.to_string())?);
        let mut steps = vec![spaces];
        if prefix {
            steps.insert(0, NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
        }
        inner.with_normalizer(Some(NormalizerSequence::new(steps))).map_err(|error| error.to_string())?;
        self.frame(&mut inner, true)?;
        Ok(inner)
    }

    /// Every way to cut a token in two tokens is a merge; the token with the higher score is merged first.
    fn merges_by_score(&self) -> Vec<(String, String)> {
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let mut merges: Vec<(f32, usize, usize)> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let ordinary = self.token_types.get(id).is_none_or(|&kind| kind == 1 || kind == USER_DEFINED);
            if !ordinary || token.len() > MAX_PIECE_BYTES {
                continue;
            }
            let cuts = token
                .char_indices()
                .skip(1)
                .filter_map(|(at, _)| Some((self.scores[id], *ids.get(&token[..at])?, *ids.get(&token[at..])?)));
            let mut cuts: Vec<_> = cuts.collect();
            cuts.sort_by_key(|&(_, left, right)| (left, right));
            merges.extend(cuts);
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0));
        merges.into_iter().map(|(_, left, right)| (self.tokens[left].clone(), self.tokens[right].clone())).collect()
    }

    /// What the tokenizer puts around a text.
    fn frame(&self, inner: &mut tokenizers::Tokenizer, add_bos_by_default: bool) -> Result<(), String> {
        let bos = self.bos.filter(|_| self.add_bos.unwrap_or(add_bos_by_default));
        let eos = self.eos.filter(|_| self.add_eos.unwrap_or(false));
        if bos.is_none() && eos.is_none() {
            return Ok(());
        }
        let mut special = Vec::new();
        let mut pattern = Vec::new();
        for (place, id) in [("BOS", bos), ("", None), ("EOS", eos)] {
            if place.is_empty() {
                pattern.push("$A");
            } else if let Some(id) = id {
                special.push((place.to_owned(), id));
                pattern.push(place);
            }
        }
        let template = TemplateProcessing::builder()
            .try_single(pattern)
            .map_err(|error| error.to_string())?
            .special_tokens(special)
            .build()
            .map_err(|error| error.to_string())?;
        inner.with_post_processor(Some(template));
        Ok(())
    }

    fn vocabulary(&self) -> Vocab {
        self.tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect()
    }

    fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }
}
