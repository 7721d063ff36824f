//! Owns how progress is shown on standard error: a bar that redraws itself on a terminal, a few plain lines elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use dualgauge_models::source::Report;

/// On a terminal the bar is redrawn at most this often.
const REDRAW: Duration = Duration::from_millis(80);
/// Elsewhere a line is written at most this often.
const LINES: Duration = Duration::from_secs(5);
const WIDTH: usize = 32;

pub struct Progress {
    terminal: bool,
    what: String,
    last: Instant,
    drawn: bool,
}

impl Progress {
    pub fn new(terminal: bool) -> Self {
        Self { terminal, what: String::new(), last: Instant::now(), drawn: false }
    }

    /// Ends it and clears the bar.
    pub fn end(&mut self) {
        if self.drawn && self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        self.drawn = false;
    }
}

impl Report for Progress {
    /// What takes no time is never shown.
    fn begin(&mut self, what: &str) {
        self.end();
        self.what = what.to_owned();
        self.last = Instant::now();
    }

    fn bytes(&mut self, done: u64, total: u64) {
        let every = if self.terminal { REDRAW } else { LINES };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        // All bytes are not always known: then there is no share, and no bar.
        let share = (total > 0).then(|| (done as f64 / total as f64).min(1.0));
        let (done, total) = (done >> 20, total >> 20);
        let what = &self.what;
        let mut err = std::io::stderr();
        // A terminal that is gone is no reason to fail.
        let _ = match (self.terminal, share) {
            (true, Some(share)) => {
                let filled = (share * WIDTH as f64) as usize;
                let bar = format!("{}{}", "#".repeat(filled), "-".repeat(WIDTH - filled));
                write!(err, "\r\x1b[K  {what} [{bar}] {done} of {total} MiB")
            }
            (true, None) => write!(err, "\r\x1b[K  {what} {done} MiB"),
            (false, Some(share)) => writeln!(err, "  {what}: {done} of {total} MiB ({:.0} %)", share * 100.0),
            (false, None) => writeln!(err, "  {what}: {done} MiB"),
        };
        let _ = err.flush();
        self.drawn = true;
    }

    fn line(&mut self, text: &str) {
        self.end();
        let _ = writeln!(std::io::stderr(), "  {text}");
    }
}
