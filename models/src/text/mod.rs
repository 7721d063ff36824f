//! Owns a model's dialect of text: words to token ids, ids to words, and chats to prompts. It knows no requests, no
//! scheduler and no network.

mod bytes;
mod charsmap;
mod conversation;
mod detokenizer;
mod gguf_tokenizer;
mod literal;
mod normalizer;
mod pieces;
mod pre_tokenizer;
mod python;
mod template;
mod tokenizer;
mod tokenizer_config;
mod tools;

use std::collections::BTreeMap;
use std::path::Path;

pub use conversation::{Conversation, Message};
pub use detokenizer::Detokenizer;
pub use gguf_tokenizer::GgufVocabulary;
pub use template::ChatTemplate;
pub use tokenizer::{MAX_INPUT_BYTES, Tokenizer};
pub use tools::ToolSpec;

use crate::source::Metadata;
use crate::{Error, Result};
use tokenizer_config::TokenizerConfig;

/// Everything that turns text into ids and back for one model: tokenizer, chat template, special tokens.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// `bos_token`, `eos_token`, `pad_token`, `unk_token` with their texts, as far as the model has them.
    named: BTreeMap<String, String>,
}

impl Text {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where they are, from a folder.
    /// Errors name the file.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut tokenizer = Tokenizer::open(&folder.join("tokenizer.json"))?;
        let config = TokenizerConfig::open(folder)?;
        tokenizer.declare(config.declared).map_err(|reason| Error::file(tokenizer_config::FILE, reason))?;
        Self::new(tokenizer, config.named, config.template, config.template_file)
    }

    /// From the metadata of a GGUF file. Errors name the file and the key.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let vocabulary = GgufVocabulary::read(metadata)?;
        let file = metadata.file();
        let named = vocabulary.named();
        let template = vocabulary.chat_template.clone();
        let tokenizer = vocabulary.into_tokenizer().map_err(|reason| Error::file(file, reason))?;
        Self::new(tokenizer, named, template, file)
    }

    /// From its parts; `named` are the texts of `bos_token` and the like, `file` is where the template is from.
    pub fn new(
        tokenizer: Tokenizer,
        named: BTreeMap<String, String>,
        template: Option<String>,
        file: &str,
    ) -> Result<Self> {
        let template = template
            .map(|source| ChatTemplate::new(&source, named.clone()))
            .transpose()
            .map_err(|reason| Error::file(file, format!("chat template: {reason}")))?;
        Ok(Self { tokenizer, template, named })
    }

    /// Ids of a text; control tokens in it are recognised. `add_special` adds what the tokenizer puts around a text.
    /// Errors: too long, or it cannot be encoded.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, add_special)
    }

    /// Ids of a conversation's prompt. Control tokens are recognised in what the template writes; in what the messages
    /// hold they are plain text, so nobody can forge a turn. Errors: no template, or it refused the conversation.
    pub fn encode_chat(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        let template = self.template()?;
        let rendered =
            self.tokenizer.control().render(conversation, template.source(), |safe| template.render(safe))?;
        if rendered.literal.is_empty() {
            return self.tokenizer.encode(&rendered.text, false);
        }
        self.tokenizer.encode_with_literals(&rendered.text, &rendered.literal)
    }

    /// The prompt of a conversation as text. To encode it use `encode_chat`: the text alone no longer tells which
    /// control tokens are the template's. Errors as `encode_chat`.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        self.template()?.render(conversation)
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Text of ids. What is no character becomes U+FFFD; unknown ids add nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Bytes of one token, which may be part of a character; none for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.bytes(id).to_vec()
    }

    /// One token as text, with U+FFFD for bytes that are no character by themselves.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.tokenizer.bytes(id)).into_owned()
    }

    /// Ids that the tokenizer knows. The model's own vocabulary may be padded beyond.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// True for control tokens.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.is_special(id)
    }

    /// The id of a token by its text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.id_of(token)
    }

    /// The token that ends an answer, as the tokenizer's files name it.
    pub fn eos_id(&self) -> Option<u32> {
        self.named.get("eos_token").and_then(|token| self.tokenizer.id_of(token))
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.named.get("bos_token").and_then(|token| self.tokenizer.id_of(token))
    }

    /// Most bytes of text that can be `tokens` tokens: longer input can be refused without encoding it.
    pub fn most_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.tokenizer.longest_token_bytes()).min(MAX_INPUT_BYTES)
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::Text("this model has no chat template: send a prompt to the completions API instead".to_owned())
        })
    }
}
