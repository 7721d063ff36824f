//! Loads a model and prints its answer as it comes: `cargo run --release -p dualgauge --example embed -- MODEL [QUESTION]`,
//! where MODEL is a folder with `config.json` or a `.gguf` file.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use dualgauge::{Engine, EngineConfig, Frontend, Piece, Prompt, Sampling, TextRequest};
use dualgauge_kernels::{DeviceSpec, open};
use dualgauge_models::{Checkpoint, Conversation, Message, WeightDtype};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: embed MODEL [QUESTION]")?;
    let question = args.next().unwrap_or_else(|| "What is a dual-gauge railway?".into());

    let mut backend = open(&DeviceSpec::default())?.backend;
    let checkpoint = Checkpoint::open(Path::new(&model))?;
    let text = Arc::new(checkpoint.text()?);
    let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {})?;
    let engine = Engine::start(backend, model, EngineConfig::default())?;

    let messages = vec![Message::new("user", question)];
    let chat = Conversation { messages, add_generation_prompt: true, ..Conversation::default() };
    let sampling = Sampling { max_tokens: Some(200), ..Sampling::default() };
    let mut answer = Frontend::new(engine, text).generate(TextRequest::new(Prompt::Chat(chat), sampling))?;
    while let Some(piece) = answer.next_blocking() {
        match piece {
            Piece::Text { text, .. } => print!("{text}"),
            Piece::Failed { message } => return Err(message.into()),
            Piece::Finished { .. } => println!(),
            Piece::Prompt(_) | Piece::Reasoning { .. } | Piece::ToolCall { .. } | Piece::ToolArguments { .. } => {}
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
