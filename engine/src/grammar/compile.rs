//! Owns the compiling of grammars: bounded in size, steps and states, and remembered, since clients send the same schema
//! again and again. Runs on the caller's thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dualgauge_models::Text;
use llguidance::api::ParserLimits;
use llguidance::{Matcher, ParserFactory};

use super::phase::{Phase, Phases};
use super::source::Source;
use super::vocabulary::Vocabulary;
use super::{Compiled, Grammar};

/// Longest grammar, its schemas included.
const MAX_SOURCE_BYTES: usize = 512 << 10;
/// Compiled grammars that are kept.
const MAX_KEPT: usize = 64;
/// States of a grammar's lexer, about 2 kB each.
const MAX_STATES: usize = 30_000;

/// Makes grammars for one model.
pub struct Compiler {
    text: Arc<Text>,
    vocab: usize,
    eos: Vec<u32>,
    /// Made when the first grammar is wanted: it takes a moment, and most servers never need it.
    tools: OnceLock<Result<Tools, String>>,
    kept: Mutex<VecDeque<(String, Grammar)>>,
}

struct Tools {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
}

impl Compiler {
    pub fn new(text: Arc<Text>, vocab: usize, eos: Vec<u32>) -> Self {
        Self { text, vocab, eos, tools: OnceLock::new(), kept: Mutex::default() }
    }

    /// # Errors
    /// A sentence: what is wrong with the grammar, or which bound it passes.
    pub fn compile(&self, source: Source) -> Result<Grammar, String> {
        let key = source.key();
        if key.len() > MAX_SOURCE_BYTES {
            return Err(format!("it has {} bytes; {MAX_SOURCE_BYTES} are allowed", key.len()));
        }
        if let Some(found) = self.find(&key) {
            return Ok(found);
        }
        let Tools { vocabulary, factory } =
            self.tools.get_or_init(|| self.make_tools_safely()).as_ref().map_err(Clone::clone)?;
        let phases = source.phases.iter().map(|phase| {
            let control: Vec<u32> = phase.until.iter().filter_map(|text| self.text.id_of(text)).collect();
            Phase {
                until: phase.until.iter().map(|text| text.clone().into_bytes()).collect(),
                free: phase.free.map(|end| Arc::new(vocabulary.free(&control, end))),
            }
        });
        let phases = Phases::new(phases.collect());
        let mut matcher = Matcher::new(factory.create_parser(source.grammars()));
        if let Some(error) = matcher.get_error() {
            return Err(said(&error));
        }
        // A grammar that nothing matches is known here, not when the first token is wanted.
        matcher.compute_mask_or_eos().map_err(|error| said(&error.to_string()))?;
        let compiled = Compiled { vocabulary: vocabulary.clone(), fresh: Mutex::new(matcher), phases };
        let grammar = Grammar(Arc::new(compiled));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front((key, grammar.clone()));
        kept.truncate(MAX_KEPT);
        Ok(grammar)
    }

    fn find(&self, key: &str) -> Option<Grammar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(k, _)| k == key)?;
        let found = kept.remove(at)?;
        let grammar = found.1.clone();
        kept.push_front(found);
        Some(grammar)
    }

    /// The library gives up on vocabularies that it does not expect.
    fn make_tools_safely(&self) -> Result<Tools, String> {
        match catch_unwind(AssertUnwindSafe(|| self.make_tools())) {
            Ok(tools) => tools,
            Err(_) => Err("this model's vocabulary cannot be used with grammars".into()),
        }
    }

    fn make_tools(&self) -> Result<Tools, String> {
        let vocabulary = Arc::new(Vocabulary::new(&self.text, self.vocab, &self.eos));
        let mut factory = ParserFactory::new_simple(&vocabulary.env()).map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() =
            ParserLimits { max_lexer_states: MAX_STATES, verbose_errors: false, ..ParserLimits::default() };
        Ok(Tools { vocabulary, factory })
    }
}

/// The library's first lines, without its places in files.
fn said(error: &str) -> String {
    let line = error.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it cannot be compiled");
    let end = line.char_indices().nth(300).map_or(line.len(), |(at, _)| at);
    line[..end].to_owned()
}
