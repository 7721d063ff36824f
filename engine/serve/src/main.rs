//! The binary: arguments, signals, exit codes.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use dualgauge_serve::args::{Args, Invocation, LogLevel};
use dualgauge_serve::start::{Started, Timeline, start};
use tokio::net::{TcpListener, TcpSocket};

/// Flags, model or device cannot be used. The same code as clap's.
const UNUSABLE: u8 = 2;
const SERVING_FAILED: u8 = 1;
/// Threads for sockets; computing has its own.
const IO_THREADS: usize = 2;
const BLOCKING_THREADS: usize = 8;

fn main() -> ExitCode {
    let begun = Instant::now();
    let result = match Invocation::of_process() {
        Invocation::Serve(args) => {
            log(args.log_level);
            serve(&args, begun)
        }
        Invocation::Neuron(cli) => {
            // These commands print what they do themselves.
            log(LogLevel::Warn);
            cli.run(begun).map_err(|error| (UNUSABLE, error))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            eprintln!("serve: {error:#}");
            ExitCode::from(code)
        }
    }
}

fn log(level: LogLevel) {
    tracing_subscriber::fmt()
        .with_max_level(level.filter())
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}

fn serve(args: &Args, begun: Instant) -> Result<(), (u8, anyhow::Error)> {
    let unusable = |error: anyhow::Error| (UNUSABLE, error);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("serve-io")
        .enable_all()
        .build()
        .context("the threads for sockets cannot be started")
        .map_err(unusable)?;
    // The address is taken before minutes go into loading, and answers only when there is something to answer.
    let socket = runtime.block_on(bind(args)).map_err(unusable)?;

    let random = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    let started = start(args, Timeline::new(begun), random).map_err(|e| unusable(e.into()))?;
    let Started { app, mut timeline, facts } = started;
    eprintln!("dualgauge {}", env!("CARGO_PKG_VERSION"));
    facts.iter().for_each(|(what, fact)| say(what, fact));

    runtime.block_on(async {
        let listener = listen(socket).map_err(unusable)?;
        let address = listener.local_addr().context("the address of the socket").map_err(unusable)?;
        timeline.step("listen");
        say("start", &timeline.line());
        if !args.is_loopback() && app.keys.is_empty() {
            eprintln!(
                "WARNING: {address} can be reached from other machines and there is no --api-key: everybody who reaches \
                 it can use it."
            );
        }
        eprintln!("listening on http://{address} (Ctrl-C stops)");
        let shutdown = signals().map_err(unusable)?;
        dualgauge_serve::run(listener, app, shutdown).await.map_err(|e| (SERVING_FAILED, e.into()))
    })
}

/// One line of the start's report.
fn say(what: &str, fact: &str) {
    eprintln!("  {what:<9}{fact}");
}

async fn bind(args: &Args) -> Result<TcpSocket> {
    let (host, port) = (args.host.as_str(), args.port);
    let found = tokio::net::lookup_host((host, port)).await.with_context(|| format!("--host {host} is no address"))?;
    let mut failed = anyhow!("--host {host} has no address");
    for address in found {
        match bind_one(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = anyhow!("cannot listen on {address}: {error}; choose another --port or --host"),
        }
    }
    Err(failed)
}

fn bind_one(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(socket: TcpSocket) -> Result<TcpListener> {
    socket.listen(1024).context("cannot listen; choose another --port")
}

/// Resolves at the first SIGTERM or Ctrl-C. The second one ends the process at once.
fn signals() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => eprintln!("stopping: running requests may finish; once more stops at once"),
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
