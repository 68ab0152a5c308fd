//! Finds and unpacks traces. Unpacking is left to gzip and tar: no bar depends on how it is done.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use taskmaster_scheduler::replay::{Trace, swf};

/// A directory of traces.
pub(crate) struct Traces {
    root: PathBuf,
}

fn output(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

impl Traces {
    /// The traces under `root`.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The text of a file, unpacked if its name ends in `.gz`.
    pub(crate) fn text(&self, file: &str) -> Result<String, Box<dyn Error>> {
        let path = self.root.join(file);
        if path.extension().is_some_and(|extension| extension == "gz") {
            return output(Command::new("gzip").arg("-dc").arg(&path));
        }
        Ok(std::fs::read_to_string(path)?)
    }

    /// A trace in the Standard Workload Format.
    pub(crate) fn swf(&self, name: &str) -> Result<Trace, Box<dyn Error>> {
        Ok(swf::read(name, &self.text(&format!("scheduling/swf/{name}.swf.gz"))?)?)
    }

    /// All files of an archive whose names end in `ending`, in the order of their names.
    pub(crate) fn archive(&self, file: &str, ending: &str) -> Result<Vec<(String, String)>, Box<dyn Error>> {
        let folder = std::env::temp_dir().join(format!("taskmaster-replay-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let unpacked = output(Command::new("tar").arg("xf").arg(self.root.join(file)).arg("-C").arg(&folder));
        let mut found = Vec::new();
        let read = unpacked.and_then(|_| collect(&folder, ending, &mut found));
        std::fs::remove_dir_all(&folder)?;
        read?;
        found.sort();
        Ok(found)
    }
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<(String, String)>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, ending, found)?;
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(ending) {
                found.push((name, std::fs::read_to_string(&path)?));
            }
        }
    }
    Ok(())
}
