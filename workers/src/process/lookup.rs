//! Finding the program that a name means, and saying in a sentence why it could not be started.

use super::launch::{Refused, Step};
use crate::job::Failure;
use rustix::fs::Access;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The path of a program: as given if it has a slash in it (then relative to the command's working directory), else the
/// first executable file of that name in `path`.
///
/// # Errors
/// A sentence. Permanent: looking again finds the same.
pub(super) fn program(name: &str, path: Option<&OsStr>) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    let mut not_executable = None;
    for directory in path.as_bytes().split(|&b| b == b':') {
        let directory = if directory.is_empty() { &b"."[..] } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        if !candidate.is_file() {
            continue;
        }
        if rustix::fs::access(&candidate, Access::EXEC_OK).is_ok() {
            return Ok(candidate);
        }
        not_executable = Some(candidate);
    }
    Err(spawn(match not_executable {
        Some(found) => format!("`{}` is not executable; `chmod +x` it", found.display()),
        None => format!(
            "there is no program `{name}` in the worker's PATH ({}); install it there or give its full path",
            path.to_string_lossy()
        ),
    }))
}

fn spawn(error: String) -> Failure {
    Failure::permanent("spawn", error)
}

/// The failure which a refused start means for the task.
pub(super) fn refused(refused: &Refused, program: &Path, cwd: Option<&Path>) -> Failure {
    let error = refused.error;
    let why = std::io::Error::from(error);
    let directory = || cwd.unwrap_or(Path::new(".")).display();
    match (refused.step, error) {
        (Step::Directory, Errno::NOENT) => spawn(format!("the working directory `{}` does not exist", directory())),
        (Step::Directory, Errno::NOTDIR) => {
            spawn(format!("the working directory `{}` is not a directory", directory()))
        }
        (Step::Directory, _) => spawn(format!("the working directory `{}` cannot be entered: {why}", directory())),
        (Step::Exec, Errno::NOENT) => spawn(missing(program, cwd)),
        (Step::Exec, Errno::ACCESS) if cwd.unwrap_or(Path::new("")).join(program).is_dir() => {
            spawn(format!("`{}` is a directory, not a program", program.display()))
        }
        (Step::Exec, Errno::ACCESS) => spawn(format!(
            "`{}` may not be executed by this worker; `chmod +x` it or check the directories above it",
            program.display()
        )),
        (Step::Exec, Errno::TOOBIG) => spawn(format!(
            "`{}` was given more arguments and environment than the kernel takes; pass data by stdin",
            program.display()
        )),
        (Step::Exec, Errno::NOMEM | Errno::AGAIN | Errno::TXTBSY | Errno::NFILE | Errno::MFILE) | (Step::Clone, _) => {
            Failure::retryable("spawn", format!("the worker could not start `{}`: {why}", program.display()))
        }
        (Step::Session | Step::Tie | Step::Stdio, _) => {
            Failure::retryable("spawn", format!("the worker could not prepare the process ({:?}): {why}", refused.step))
        }
        (Step::Exec, _) => spawn(format!("`{}` cannot be executed: {why}", program.display())),
    }
}

fn missing(program: &Path, cwd: Option<&Path>) -> String {
    let file = cwd.unwrap_or(Path::new("")).join(program);
    if file.exists() {
        return format!(
            "`{}` exists, but the interpreter which its first line (or its ELF header) names does not",
            program.display()
        );
    }
    format!("there is no program `{}` (looked for as `{}`)", program.display(), file.display())
}
