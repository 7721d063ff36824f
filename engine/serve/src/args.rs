//! Owns the command line and the environment: every flag, its variable, its default and its help. The only file of the
//! project that reads the environment; the rest gets values.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};
use dualgauge_kernels::{Affinity, DeviceKind, DeviceSpec, Precision};
use dualgauge_models::source::Locations;
use dualgauge_models::text::{CallFormat, ReasoningFormat};

use crate::neuron::{NeuronCli, NeuronFlags};

const EXAMPLES: &str = "\
Examples:
  serve                                        the small default model, on the best device, port 8000
  serve --model ./SmolLM2-135M-Instruct        a folder with config.json and safetensors
  serve --model model-Q8_0.gguf --port 9000    one GGUF file
  serve --model org/name@main --api-key K      from the Hugging Face hub, guarded by a key

Then:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}], \"stream\": true}'

AWS Trainium and Inferentia: `serve neuron --help` plans, compiles and checks before serving with --device neuron.

Every flag can also be set by the environment variable shown beside it. HF_HOME, HF_ENDPOINT, HF_TOKEN and
XDG_CACHE_HOME mean what they mean to other tools of the hub. Exit codes: 0 after a clean stop, 1 when serving failed,
2 when the flags, the model or the device cannot be used.";

/// Serves a language model over HTTP with the OpenAI API.
#[derive(Clone, Debug, Parser)]
#[command(name = "serve", version, about, after_help = EXAMPLES, max_term_width = 120)]
pub struct Args {
    /// A folder, a .gguf file, a hub id (org/name[@revision]) or a preset.
    ///
    /// Without it the preset smollm2-135m is used: from the local cache, else downloaded.
    #[arg(long, value_name = "MODEL", env = "DUALGAUGE_MODEL", help_heading = "Model")]
    pub model: Option<String>,

    /// Name that clients call the model by; repeat for several. Default: the name it was asked for by.
    #[arg(long, value_name = "NAME", env = "DUALGAUGE_SERVED_MODEL_NAME", value_delimiter = ',', num_args = 1.., action = ArgAction::Append, help_heading = "Model")]
    pub served_model_name: Vec<String>,

    /// A further name for the model that no list shows, such as the cloud's name that existing code asks for; repeat for several.
    #[arg(long, value_name = "NAME", env = "DUALGAUGE_ALIAS", value_delimiter = ',', num_args = 1.., action = ArgAction::Append, help_heading = "Model")]
    pub alias: Vec<String>,

    /// How the model writes calls of tools. Default: as its chat template shows.
    #[arg(long, value_name = "FORMAT", value_parser = call_format, env = "DUALGAUGE_TOOL_PARSER", help_heading = "Model")]
    pub tool_parser: Option<CallFormat>,

    /// How the model marks its reasoning, or none. Default: as its chat template shows.
    #[arg(long, value_name = "FORMAT", value_parser = reasoning_format, env = "DUALGAUGE_REASONING_PARSER", help_heading = "Model")]
    pub reasoning_parser: Option<ReasoningChoice>,

    /// Weights and arithmetic: auto keeps what the files have; f32 computes everything exactly, and slower.
    #[arg(long, value_enum, default_value_t = Dtype::Auto, env = "DUALGAUGE_DTYPE", help_heading = "Model")]
    pub dtype: Dtype,
    /// Round the matrices of a bf16, f16 or f32 checkpoint while it is loaded. Vectors and routers stay as they are;
    /// so do the matrices of the vocabulary under fp8, and under q4 they become q8.
    #[arg(long, value_enum, env = "DUALGAUGE_QUANTIZE", conflicts_with = "dtype", help_heading = "Model")]
    pub quantize: Option<Quantize>,

    /// Most tokens of a prompt and its answer together. Default: what the model was made for and memory holds.
    #[arg(long, value_name = "TOKENS", value_parser = count, env = "DUALGAUGE_MAX_MODEL_LEN", help_heading = "Model")]
    pub max_model_len: Option<usize>,

    /// Never download: only files that are already here.
    #[arg(long, env = "DUALGAUGE_OFFLINE", value_parser = BoolishValueParser::new(), help_heading = "Model")]
    pub offline: bool,

    /// Address to listen on. Anything but a loopback address is open to your network: add --api-key.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", env = "DUALGAUGE_HOST", help_heading = "Server")]
    pub host: String,

    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 8000, env = "DUALGAUGE_PORT", help_heading = "Server")]
    pub port: u16,

    /// A key that opens every route; repeat for several. Without one everybody may ask.
    #[arg(long, value_name = "KEY", env = "DUALGAUGE_API_KEY", value_delimiter = ',', num_args = 1.., action = ArgAction::Append, help_heading = "Server")]
    pub api_key: Vec<String>,

    /// Seconds that running requests get to finish after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, env = "DUALGAUGE_DRAIN_TIMEOUT", help_heading = "Server")]
    pub drain_timeout: Duration,

    /// Seed of everything random. Without it, requests that bring no seed get an unpredictable one.
    #[arg(long, env = "DUALGAUGE_SEED", help_heading = "Server")]
    pub seed: Option<u64>,

    /// What is written to standard error while serving.
    #[arg(long, value_enum, default_value_t = LogLevel::Info, env = "DUALGAUGE_LOG_LEVEL", help_heading = "Server")]
    pub log_level: LogLevel,

    /// auto, cpu, cuda, cuda:N, neuron or reference (slow, exact).
    #[arg(long, default_value = "auto", value_parser = device, env = "DUALGAUGE_DEVICE", help_heading = "Device")]
    pub device: DeviceKind,

    /// Compute threads of the CPU. Default: one for each physical core this process may use.
    #[arg(long, value_parser = count, env = "DUALGAUGE_THREADS", help_heading = "Device")]
    pub threads: Option<usize>,

    /// Processors for these threads, one each: auto binds none; or a list such as 0-3,8.
    #[arg(long, value_name = "LIST", default_value = "auto", value_parser = Affinity::from_str, env = "DUALGAUGE_CPU_AFFINITY", help_heading = "Device")]
    pub cpu_affinity: Affinity,

    /// Instruction-set path of the CPU, to compare them. Default: the best this machine has.
    #[arg(long, value_name = "PATH", env = "DUALGAUGE_ISA", hide = true, help_heading = "Device")]
    pub isa: Option<String>,

    /// Bytes for the K/V cache; a suffix k, m or g counts in 1024s. Default: what the device can give.
    #[arg(long, value_name = "BYTES", value_parser = bytes, env = "DUALGAUGE_KV_CACHE_MEMORY_BYTES", alias = "kv-cache-memory", help_heading = "Device")]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Most requests that run at once; more wait. Default: 128.
    #[arg(long, value_name = "REQUESTS", value_parser = count, env = "DUALGAUGE_MAX_NUM_SEQS", help_heading = "Scheduling")]
    pub max_num_seqs: Option<usize>,

    /// Most tokens computed in one step. Default: 512.
    #[arg(long, value_name = "TOKENS", value_parser = count, env = "DUALGAUGE_MAX_NUM_BATCHED_TOKENS", help_heading = "Scheduling")]
    pub max_num_batched_tokens: Option<usize>,

    /// Most requests that wait; further ones are answered with status 429. Default: 1024.
    #[arg(long, value_name = "REQUESTS", value_parser = count, env = "DUALGAUGE_MAX_QUEUE", help_heading = "Scheduling")]
    pub max_queue: Option<usize>,

    /// Do not keep computed prefixes for later requests.
    #[arg(long, env = "DUALGAUGE_NO_ENABLE_PREFIX_CACHING", value_parser = BoolishValueParser::new(), help_heading = "Scheduling")]
    pub no_enable_prefix_caching: bool,

    #[command(flatten)]
    pub neuron: NeuronFlags,
}

/// What this process was asked to do.
#[derive(Clone, Debug)]
pub enum Invocation {
    Serve(Box<Args>),
    Neuron(Box<NeuronCli>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    Auto,
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(aliases = ["float16", "half"])]
    F16,
    #[value(aliases = ["float32", "float"])]
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// 8-bit integers, a scale each 32
    Q8,
    /// 4-bit integers, a scale each 32
    Q4,
    /// 8-bit floats, a scale each 128
    Fp8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Invocation {
    /// The arguments of this process. Ends it when they are wrong (exit code 2) or only ask for help.
    pub fn of_process() -> Self {
        let mut words = std::env::args_os().peekable();
        let program = words.next();
        if words.peek().is_some_and(|word| word == "neuron") {
            return Self::Neuron(Box::new(parsed(NeuronCli::spelled_out(), words)));
        }
        Self::Serve(Box::new(parsed(Args::command(), program.into_iter().chain(words))))
    }
}

fn parsed<T: FromArgMatches>(command: Command, words: impl Iterator<Item = OsString>) -> T {
    let matches = careful(command).get_matches_from(words);
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn careful(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        // What a variable holds now is no help to a reader, and may be a secret.
        let arg = arg.hide_env_values(true);
        // So that `-1` is answered with the flag's range.
        if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg }
    });
    command.mut_subcommands(careful)
}

impl Args {
    /// Which device to open and how.
    pub fn device_spec(&self) -> DeviceSpec {
        DeviceSpec {
            kind: self.device,
            threads: self.threads,
            affinity: self.cpu_affinity.clone(),
            isa: self.isa.clone(),
            precision: if self.dtype == Dtype::F32 { Precision::Exact } else { Precision::Native },
            neuron: self.neuron.options(),
            ..DeviceSpec::default()
        }
    }

    /// Where models are looked for and kept, by the variables that the hub's other tools obey.
    pub fn locations(&self) -> Locations {
        let cache_dir = path_variable("XDG_CACHE_HOME")
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|v| !["0", "false", "no", "off"].contains(&v.as_str()));
        Locations {
            cache_dir,
            hf_home: path_variable("HF_HOME"),
            hf_token: variable("HF_TOKEN"),
            hf_endpoint: variable("HF_ENDPOINT"),
            offline: self.offline || offline,
            ..Locations::default()
        }
    }

    /// True when the address is one that only this machine reaches.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
    }
}

impl LogLevel {
    pub fn filter(self) -> tracing::level_filters::LevelFilter {
        use tracing::level_filters::LevelFilter;
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// A variable that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("must be a whole number, at least 1".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    if !(0.0..=86_400.0).contains(&value) {
        return Err("must be from 0 to 86400 seconds".into());
    }
    Ok(Duration::from_secs_f64(value))
}

/// A format of reasoning, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningChoice(pub Option<ReasoningFormat>);

fn call_format(text: &str) -> Result<CallFormat, String> {
    let names: Vec<&str> = CallFormat::names().collect();
    CallFormat::named(text).ok_or_else(|| format!("must be one of {}", names.join(", ")))
}

fn reasoning_format(text: &str) -> Result<ReasoningChoice, String> {
    if text == "none" {
        return Ok(ReasoningChoice(None));
    }
    let names: Vec<&str> = ReasoningFormat::names().collect();
    let format = ReasoningFormat::named(text);
    format
        .map(|format| ReasoningChoice(Some(format)))
        .ok_or_else(|| format!("must be none or one of {}", names.join(", ")))
}

fn bytes(text: &str) -> Result<u64, String> {
    let message = "must be a number of bytes, or one with the suffix k, m or g";
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches("ib").trim_end_matches('b');
    let (digits, unit) = match digits.strip_suffix(['k', 'm', 'g']) {
        Some(rest) if digits.ends_with('k') => (rest, 1 << 10),
        Some(rest) if digits.ends_with('m') => (rest, 1 << 20),
        Some(rest) => (rest, 1 << 30),
        None => (digits, 1),
    };
    let number: u64 = digits.parse().map_err(|_| message)?;
    number.checked_mul(unit).filter(|n| *n > 0).ok_or_else(|| message.into())
}

fn device(text: &str) -> Result<DeviceKind, String> {
    match text {
        "auto" => Ok(DeviceKind::Auto),
        "cpu" => Ok(DeviceKind::Cpu),
        "cuda" => Ok(DeviceKind::Cuda(0)),
        "neuron" => Ok(DeviceKind::Neuron),
        "reference" => Ok(DeviceKind::Reference),
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(DeviceKind::Cuda)
            .ok_or_else(|| "must be auto, cpu, cuda, cuda:N, neuron or reference".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn bytes_take_suffixes() {
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!(bytes("2g"), Ok(2 << 30));
        assert_eq!(bytes("3MiB"), Ok(3 << 20));
        for bad in ["", "g", "-1", "1.5g", "0", "99999999999g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_have_names() {
        assert_eq!(device("cuda:3"), Ok(DeviceKind::Cuda(3)));
        assert!(device("cuda:x").is_err());
        assert!(device("gpu").is_err());
    }

    #[test]
    fn only_loopback_counts_as_private() {
        let at = |host: &str| Args::parse_from(["serve", "--host", host]).is_loopback();
        assert!(at("127.0.0.1") && at("::1") && at("localhost") && at("127.0.0.9"));
        assert!(!at("0.0.0.0") && !at("::") && !at("10.0.0.1") && !at("example.org"));
    }
}
