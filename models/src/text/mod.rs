//! Owns a model's dialect of text: words to token ids, ids to words, and chats to prompts. It knows no requests, no
//! scheduler and no network.

mod answer;
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
mod reasoning;
mod template;
mod tokenizer;
mod tokenizer_config;
mod tools;

use std::collections::BTreeMap;
use std::path::Path;

pub use answer::{AnswerParser, AnswerPart, Reading};
pub use conversation::{Conversation, Message};
pub use detokenizer::Detokenizer;
pub use gguf_tokenizer::GgufVocabulary;
pub use reasoning::{ReasoningFormat, Tags};
pub use template::ChatTemplate;
pub use tokenizer::{MAX_INPUT_BYTES, Tokenizer};
pub use tools::{CallFormat, CallSyntax, ToolSpec};

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
    calls: CallFormat,
    reasoning: Option<ReasoningFormat>,
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
        let source = template.as_ref().map_or("", ChatTemplate::source);
        let (calls, reasoning) = (CallFormat::of_template(source), ReasoningFormat::of_template(source));
        // A form that the template does not show is none that the model was told of.
        let shown = template.as_ref().is_some_and(ChatTemplate::shows_tools);
        let calls = if shown || calls == CallFormat::Harmony { calls } else { CallFormat::Hermes };
        Ok(Self { tokenizer, template, named, calls, reasoning })
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

    /// How this model writes calls of tools.
    pub fn call_format(&self) -> CallFormat {
        self.calls
    }

    /// How this model marks its reasoning; `None`: it does none that can be told from its answer.
    pub fn reasoning_format(&self) -> Option<ReasoningFormat> {
        self.reasoning
    }

    /// For a model whose template does not show its ways.
    pub fn set_call_format(&mut self, format: CallFormat) {
        self.calls = format;
    }

    pub fn set_reasoning_format(&mut self, format: Option<ReasoningFormat>) {
        self.reasoning = format;
    }

    /// The conversation with tools, as this model's template can show them: where it has no place for tools they are
    /// explained in words, and earlier calls and results become text.
    pub fn with_tools(&self, conversation: &Conversation, tools: &[ToolSpec]) -> Conversation {
        let Some(template) = &self.template else { return conversation.clone() };
        let called = |m: &Message| m.role == "tool" || m.extra.contains_key("tool_calls");
        if !template.shows_tools() && (!tools.is_empty() || conversation.messages.iter().any(called)) {
            return tools::instructed(conversation, tools, template.shows_system());
        }
        let mut conversation = conversation.clone();
        if !tools.is_empty() {
            conversation.tools = Some(tools.iter().map(ToolSpec::described).collect());
        }
        if self.calls == CallFormat::MistralList {
            conversation.messages.iter_mut().for_each(nine_characters);
        }
        if template.source().contains(".thinking") {
            for message in &mut conversation.messages {
                if let Some(text) = message.extra.get("reasoning_content").cloned() {
                    message.extra.entry("thinking").or_insert(text);
                }
            }
        }
        conversation
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

/// Mistral's templates refuse identifiers of any other length.
fn nine_characters(message: &mut Message) {
    let calls = message.extra.get_mut("tool_calls").and_then(|calls| calls.as_array_mut());
    for id in calls.into_iter().flatten().filter_map(|call| call.get_mut("id")) {
        shorten(id);
    }
    message.extra.get_mut("tool_call_id").into_iter().for_each(shorten);
}

fn shorten(id: &mut serde_json::Value) {
    let fits = |text: &str| text.len() == 9 && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(text) = id.as_str().filter(|text| !fits(text)) {
        // FNV-1a.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        *id = format!("{:09x}", hash & 0xf_ffff_ffff).into();
    }
}
