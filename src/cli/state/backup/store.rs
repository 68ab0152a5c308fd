//! Where a backup is: a directory, or a place in a bucket of an object store. Both are lists of files that are read from the beginning.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use taskmaster_connect::s3::{Address, Bucket, Entry, Error, Settings};

use super::manifest::{Manifest, NAME};
use crate::cli::connect::block_on;
use crate::cli::progress::Progress;
use crate::cli::signal::Stop;
use crate::cli::{Exit, Failure};
use crate::output::human_bytes;

/// The place of a backup as it is named: `DIR` or `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Location {
    Directory(PathBuf),
    Bucket(String),
}

impl FromStr for Location {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if Address::is_meant(text) { Self::Bucket(text.to_owned()) } else { Self::Directory(text.into()) })
    }
}

/// A place that can be read.
#[derive(Debug)]
pub(in crate::cli::state) enum Store {
    Directory(PathBuf),
    Bucket(Box<Bucket>),
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket(bucket) => bucket.address().fmt(f),
        }
    }
}

impl Store {
    /// Nothing is read yet.
    pub(in crate::cli::state) fn open(location: &Location) -> Result<Self, Failure> {
        match location {
            Location::Directory(path) => Ok(Self::Directory(path.clone())),
            Location::Bucket(address) => Ok(Self::Bucket(Box::new(bucket(address, Arc::default())?))),
        }
    }

    /// A file of it, for people.
    pub(super) fn shown(&self, path: &str) -> String {
        match self {
            Self::Directory(root) => root.join(path).display().to_string(),
            Self::Bucket(bucket) => format!("{}/{path}", bucket.address().to_string().trim_end_matches('/')),
        }
    }

    /// All files with their lengths, by their paths from its root.
    pub(super) fn files(&self) -> Result<Vec<Entry>, Failure> {
        match self {
            Self::Directory(root) => self.walk(root),
            Self::Bucket(bucket) => Ok(bucket.list()?),
        }
    }

    fn walk(&self, root: &Path) -> Result<Vec<Entry>, Failure> {
        let failed = |path: &Path, error: &io::Error| io_failure(&path.display().to_string(), error);
        let (mut found, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            let listed = || std::fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>();
            for entry in listed().map_err(|error| failed(&folder, &error))? {
                let path = entry.path();
                let about = entry.metadata().map_err(|error| failed(&path, &error))?;
                let relative = path.strip_prefix(root).unwrap_or(&path);
                match relative.to_str() {
                    _ if about.is_dir() => folders.push(path),
                    Some(name) if about.is_file() => found.push(Entry { path: name.to_owned(), bytes: about.len() }),
                    _ => {
                        let sentence = format!("{}: it does not belong to a backup: move it away", path.display());
                        return Err(Failure::new(Exit::Failed, sentence));
                    }
                }
            }
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }

    /// Reads one file.
    pub(super) fn read(&self, entry: &Entry) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Directory(root) => Box::new(File::open(root.join(&entry.path))?),
            Self::Bucket(bucket) => Box::new(bucket.object(entry)),
        })
    }
}

/// A failure of reading or writing there.
pub(super) fn io_failure(path: &str, error: &io::Error) -> Failure {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return Failure::new(exit_of(error), error.to_string());
    }
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
    Failure::new(exit, format!("{path}: {error}"))
}

fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Settings(_) => Exit::Usage,
        Error::Missing(_) => Exit::NotFound,
        Error::Refused(_) => Exit::Refused,
        Error::Unreachable(_) => Exit::Unreachable,
        Error::File(_) => Exit::Failed,
        Error::Stopped => Exit::Interrupted,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(exit_of(&error), error.to_string())
    }
}

fn bucket(address: &str, stop: Arc<AtomicBool>) -> Result<Bucket, Failure> {
    let address = address.parse().map_err(|problem| Failure::usage(format!("{address} {problem}")))?;
    Ok(Bucket::new(address, &Settings::from_environment(|name| std::env::var(name).ok())?, stop)?)
}

/// Whether a path of a manifest stays below the backup's root.
pub(super) fn is_plain(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A place in a bucket that has nothing yet, for a backup that is made elsewhere first.
pub(super) struct Outgoing(Bucket);

impl Outgoing {
    /// Sees that there is nothing.
    pub(super) fn new(address: &str, stop: Arc<AtomicBool>) -> Result<Self, Failure> {
        let bucket = bucket(address, stop)?;
        let found = bucket.list()?;
        if found.is_empty() {
            return Ok(Self(bucket));
        }
        let has_manifest = found.iter().any(|entry| entry.path == NAME);
        let what = if has_manifest { "is a backup" } else { "has objects, and no manifest: what is left of a backup" };
        Err(Failure::usage(format!("{} {what}: name a prefix that has none, or remove them first", bucket.address())))
    }

    /// Sends a whole backup, the manifest last. What was sent is taken away again if it does not succeed.
    pub(super) fn send(&self, root: &Path, manifest: &Manifest) -> Result<String, Failure> {
        let mut progress = Progress::new("upload", manifest.bytes(), false);
        let mut sent = 0;
        let mut on_bytes = |bytes| {
            sent += bytes;
            progress.set(sent, || human_bytes(sent));
        };
        let paths = manifest.files.iter().map(|file| file.path.as_str()).chain([NAME]);
        for (number, path) in paths.clone().enumerate() {
            if let Err(failure) = self.send_file(&root.join(path), path, &mut on_bytes) {
                progress.finish();
                let sent: Vec<&str> = paths.take(number + 1).collect();
                for path in sent.into_iter().rev() {
                    // What went wrong first is what counts; without a manifest, which goes first, the rest is no backup.
                    if let Err(Error::Unreachable(_)) = self.0.remove(path) {
                        break;
                    }
                }
                return Err(failure);
            }
        }
        progress.finish();
        Ok(self.0.address().to_string())
    }

    fn send_file(&self, from: &Path, path: &str, on_bytes: &mut impl FnMut(u64)) -> Result<(), Failure> {
        let mut file = File::open(from)?;
        let bytes = file.metadata()?.len();
        Ok(self.0.write(path, &mut file, bytes, on_bytes)?)
    }
}

/// Does work that ends soon once the flag is set, which Ctrl-C and SIGTERM do; the second time they end the process.
pub(super) fn until_stopped<T: Send + 'static>(
    work: impl FnOnce(Arc<AtomicBool>) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    block_on(async {
        let mut signals = Stop::listen()?;
        let flag = Arc::new(AtomicBool::new(false));
        let mut working = tokio::task::spawn_blocking({
            let flag = Arc::clone(&flag);
            move || work(flag)
        });
        loop {
            tokio::select! {
                done = &mut working => return done.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?,
                () = signals.asked() => {
                    if flag.swap(true, Ordering::Relaxed) {
                        return Err(Failure::new(Exit::Interrupted, "it was interrupted, and what was sent may be left"));
                    }
                    eprintln!("taking back what was sent");
                }
            }
        }
    })
}
