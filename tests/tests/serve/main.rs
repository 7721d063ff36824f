//! The HTTP server over a real engine. The client shares no code with the server; the device is the one that computes
//! hashes, so that a test says what the server does and not what a model says.

mod anthropic;
mod azure;
mod bedrock;
mod chat;
mod completions;
mod door;
mod format;
mod gemini;
mod input;
mod life;
mod ollama;
mod responses;
mod server;
mod tools;
