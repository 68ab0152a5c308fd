//! Recorded instances in a folder: plain `.json` files, and every `.json` inside `.tar.xz` archives.
//!
//! For tests and benches, behind the `instances` feature; the recordings themselves are no part of this repository
//! (docs/formats/workflow.md says where they come from).

use std::fs;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// The folder with recorded workflows: `$TASKMASTER_TRACES/workflows`, else `../shared/data/workflows` beside the
/// workspace; `None` where neither exists.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let traces = std::env::var_os("TASKMASTER_TRACES").map(PathBuf::from);
    let traces = traces.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
    let folder = traces.join("workflows");
    folder.is_dir().then_some(folder)
}

/// The repository's own small instances that must be readable.
#[must_use]
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wfformat/good")
}

/// Every instance below `folder` (not recursive; archives are opened): its name and its text, sorted by name. A plain
/// file whose name also stands in an archive is given once.
///
/// # Errors
/// What reading the files or unpacking an archive says.
pub fn instances(folder: &Path) -> io::Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".tar.xz") {
            unpack(&path, &mut found)?;
        } else if name.ends_with(".json") {
            found.push((name, fs::read_to_string(&path)?));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found.dedup_by(|(one, _), (other, _)| one == other);
    Ok(found)
}

fn unpack(archive: &Path, found: &mut Vec<(String, String)>) -> io::Result<()> {
    let mut packed = BufReader::new(fs::File::open(archive)?);
    let mut unpacked = Vec::new();
    lzma_rs::xz_decompress(&mut packed, &mut unpacked)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error:?}", archive.display())))?;
    for entry in tar::Archive::new(&unpacked[..]).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if path.extension().is_some_and(|extension| extension == "json") {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            found.push((name, text));
        }
    }
    Ok(())
}
