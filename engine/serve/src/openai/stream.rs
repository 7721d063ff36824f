//! Owns how answers leave in the OpenAI API: collected into one body, or as server-sent events.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use dualgauge::{Piece, Token};

use super::reply::{Choice, Content, Reply};
use super::{ApiError, error_body};
use crate::answer::{Answer, Spent};
use crate::stream::{Choices, SERVER_SENT_EVENTS, Writer, collect, respond};

/// Waits for all answers.
///
/// # Errors
/// When one of them fails or is cut off.
pub async fn whole(reply: Reply, choices: Vec<Choice>, pieces: Choices) -> Result<Response, ApiError> {
    let mut answers: Vec<Answer> = choices.iter().map(|_| Answer::default()).collect();
    collect(pieces, |at, piece| answers[at].take(piece)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], reply.whole(choices, answers)).into_response())
}

/// Answers with events as they come.
///
/// # Errors
/// When a choice fails before anything was made.
pub async fn events(reply: Reply, choices: Vec<Choice>, pieces: Choices) -> Result<Response, ApiError> {
    let spent = vec![Spent::default(); choices.len()];
    respond(Chunks { reply, choices, spent }, SERVER_SENT_EVENTS, pieces).await
}

struct Chunks {
    reply: Reply,
    choices: Vec<Choice>,
    spent: Vec<Spent>,
}

impl Chunks {
    fn say(&mut self, at: usize, content: Content<'_>, tokens: &[Token], out: &mut Vec<u8>) {
        let choice = &mut self.choices[at];
        push(out, self.reply.open(choice, None));
        push(out, self.reply.piece(choice, content, tokens));
    }
}

impl Writer for Chunks {
    fn piece(&mut self, at: usize, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Prompt(logprobs) => push(out, self.reply.open(&mut self.choices[at], Some(&logprobs))),
            Piece::Text { text, tokens } => self.say(at, Content::Text(&text), &tokens, out),
            Piece::Reasoning { text, tokens } => self.say(at, Content::Reasoning(&text), &tokens, out),
            Piece::ToolCall { index, id, name } => {
                self.say(at, Content::Call { index, id: &id, name: &name }, &[], out);
            }
            Piece::ToolArguments { index, text, tokens } => {
                self.say(at, Content::Arguments { index, text: &text }, &tokens, out);
            }
            Piece::Finished { reason, usage, reasoning_tokens } => {
                let choice = &mut self.choices[at];
                push(out, self.reply.open(choice, None));
                push(out, Some(self.reply.finish(choice, &reason)));
                self.spent[at] = Spent { usage, reasoning_tokens };
            }
            Piece::Failed { .. } => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        push(out, self.reply.usage_chunk(&self.spent));
        out.extend(b"data: [DONE]\n\n");
    }

    /// Without `[DONE]`.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        push(out, Some(error_body(error).to_string()));
    }

    fn keep_alive(&self) -> &'static [u8] {
        b": keep-alive\n\n"
    }
}

/// One line of JSON is one event: serde escapes line ends.
fn push(out: &mut Vec<u8>, body: Option<String>) {
    if let Some(body) = body {
        out.extend(b"data: ");
        out.extend(body.as_bytes());
        out.extend(b"\n\n");
    }
}
