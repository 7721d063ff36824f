//! Owns what a test holds: a stand-in of its own. Each is a copy of the library in a folder of the test's, because one
//! process loads a library once and tests run side by side.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::config::beside;

/// One simulated device with its compiler.
#[derive(Debug)]
pub struct Stand {
    folder: PathBuf,
}

/// What the runtime noted when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub leaked: usize,
    pub executed: usize,
}

impl Stand {
    /// A device in `folder`, from the library that cargo built beside the running test, and the compiler `compiler`.
    ///
    /// # Errors
    /// When the library is not there: build with `cargo test`, which makes it.
    pub fn new(folder: &Path, compiler: &Path) -> io::Result<Self> {
        let running = std::env::current_exe()?;
        let places = running.ancestors().skip(1).take(2).flat_map(|d| [d.join("libnrt.so"), d.join("deps/libnrt.so")]);
        let built = places.into_iter().find(|p| p.is_file()).ok_or_else(|| {
            let message = format!("libnrt.so of the simulator was not built beside {}", running.display());
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        let stand = Self { folder: folder.to_path_buf() };
        fs::create_dir_all(folder)?;
        fs::copy(built, stand.library())?;
        // A link, so that its runs are noted in this folder.
        std::os::unix::fs::symlink(compiler, stand.compiler())?;
        Ok(stand)
    }

    pub fn library(&self) -> PathBuf {
        self.folder.join("libnrt.so.1")
    }

    pub fn compiler(&self) -> PathBuf {
        self.folder.join("neuronx-cc")
    }

    /// Adds a setting (see [`crate::config::Config`]); read when the library is opened.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, line: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(beside(&self.library(), "config"))?;
        writeln!(file, "{line}")
    }

    /// A second life of the same device: what a restarted process finds. The cache stays.
    ///
    /// # Errors
    /// When the library cannot be copied.
    pub fn restart(&self) -> io::Result<()> {
        // A new file is a new library to the loader.
        let (library, fresh) = (self.library(), self.folder.join("libnrt.so.fresh"));
        fs::copy(&library, &fresh)?;
        fs::rename(fresh, library)
    }

    /// How often the compiler ran.
    pub fn compilations(&self) -> usize {
        fs::read_to_string(beside(&self.compiler(), "log")).map_or(0, |log| log.lines().count())
    }

    /// Makes every compilation from now on end with this error.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn fail_compiler(&self, error: &str) -> io::Result<()> {
        fs::write(beside(&self.compiler(), "fail"), error)
    }

    /// Takes [`Self::fail_compiler`] back.
    ///
    /// # Errors
    /// When it was not told to fail.
    pub fn mend_compiler(&self) -> io::Result<()> {
        fs::remove_file(beside(&self.compiler(), "fail"))
    }

    /// `None` while the runtime was not closed.
    pub fn report(&self) -> Option<Report> {
        let text = fs::read_to_string(beside(&self.library(), "report")).ok()?;
        let number = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse().ok());
        Some(Report { leaked: number("leaked")?, executed: number("executed")? })
    }
}
