//! Owns the flags of the Neuron device: where its library, compiler and cache are, what is compiled, how many cores share
//! a model.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use dualgauge_kernels::{Ladder, NeuronOptions};

#[derive(Clone, Debug, clap::Args)]
pub struct NeuronFlags {
    /// NeuronCores that share the model. Above 1 only `serve neuron plan` answers yet.
    #[arg(long, value_name = "CORES", default_value_t = 1, value_parser = crate::args::count, env = "DUALGAUGE_TP", alias = "tensor-parallel-size", help_heading = "Neuron")]
    pub tp: usize,

    /// The runtime library. Default: libnrt.so.1 where the Neuron packages put it.
    #[arg(long, value_name = "FILE", env = "DUALGAUGE_NEURON_LIBRARY", help_heading = "Neuron")]
    pub neuron_library: Option<PathBuf>,

    /// The compiler. Default: neuronx-cc from the search path.
    #[arg(long, value_name = "FILE", env = "DUALGAUGE_NEURON_COMPILER", help_heading = "Neuron")]
    pub neuron_compiler: Option<PathBuf>,

    /// Folder of compiled programs; may be read-only when it holds all. Default: /var/tmp/dualgauge/neuron.
    #[arg(long, value_name = "DIR", env = "DUALGAUGE_NEURON_CACHE_DIR", help_heading = "Neuron")]
    pub neuron_cache_dir: Option<PathBuf>,

    /// Never compile while serving: a request that needs a program the cache lacks fails instead of waiting minutes.
    #[arg(long, env = "DUALGAUGE_NEURON_NO_COMPILE", value_parser = BoolishValueParser::new(), help_heading = "Neuron")]
    pub neuron_no_compile: bool,

    /// Chunks that prompts are computed in: token counts that programs are compiled for. Default: 64,512.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = crate::args::count, env = "DUALGAUGE_NEURON_PREFILL_BUCKETS", help_heading = "Neuron")]
    pub neuron_prefill_buckets: Vec<usize>,

    /// Batches of the decode programs. Default: 1,4,16,64.
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', value_parser = crate::args::count, env = "DUALGAUGE_NEURON_DECODE_BUCKETS", help_heading = "Neuron")]
    pub neuron_decode_buckets: Vec<usize>,

    /// Contexts that programs are compiled for. Default: 512,2048,8192,32768.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', value_parser = crate::args::count, env = "DUALGAUGE_NEURON_CONTEXT_BUCKETS", help_heading = "Neuron")]
    pub neuron_context_buckets: Vec<usize>,
}

impl NeuronFlags {
    /// What the back end is told.
    pub fn options(&self) -> NeuronOptions {
        let mut ladder = Ladder::default();
        for (buckets, given) in [
            (&mut ladder.prefill_tokens, &self.neuron_prefill_buckets),
            (&mut ladder.decode_seqs, &self.neuron_decode_buckets),
            (&mut ladder.context_tokens, &self.neuron_context_buckets),
        ] {
            if !given.is_empty() {
                buckets.clone_from(given);
            }
        }
        NeuronOptions {
            libnrt: self.neuron_library.clone(),
            compiler: self.neuron_compiler.clone(),
            cache_dir: self.neuron_cache_dir.clone(),
            ladder,
            no_compile: self.neuron_no_compile,
            cores: Some(self.tp),
        }
    }
}
