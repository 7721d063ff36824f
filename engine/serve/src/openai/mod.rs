//! The OpenAI API: models, chat completions, completions, and vLLM's tokenize and detokenize.

mod convert;
mod errors;
mod messages;
mod reply;
mod routes;
mod sampling;
mod stream;
mod types;

pub use errors::ApiError;
pub(crate) use routes::routes;
