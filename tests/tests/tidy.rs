//! The rules of the house that a compiler does not check: who may depend on whom, what the engine may not touch, the
//! shape of files, and that links in the documentation lead somewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Most lines of a source file without its tests.
const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every file of the tree that is ours, as path from the root and its text.
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_ours = !name.starts_with('.') || name == ".ci";
            if path.is_dir() {
                let made = ["target", "corpus", "artifacts", "node_modules"].contains(&name.as_str());
                if is_ours && !made && !name.starts_with("taskmaster-") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted)) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), text));
            }
        }
    }
    found.sort();
    assert!(found.len() > 5, "{extensions:?}: {found:?}");
    found
}

fn sources() -> Vec<(String, String)> {
    files(&["rs"])
}

/// Lines of code: without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    lines.map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.starts_with("tests/")
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Crates of ours in the `[dependencies]` of a manifest.
fn ours(manifest: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(manifest)).unwrap();
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]"
            && let Some((name, _)) = line.split_once('=')
            && name.starts_with("taskmaster-")
        {
            found.insert(name.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    found
}

#[test]
fn crates_depend_only_in_the_agreed_direction() {
    for (manifest, allowed) in [
        ("net/protocol/Cargo.toml", &[][..]),
        ("engine/Cargo.toml", &["taskmaster-protocol", "taskmaster-scheduler"]),
        ("engine/scheduler/Cargo.toml", &[]),
        ("net/Cargo.toml", &["taskmaster-protocol"]),
        ("storage/Cargo.toml", &[]),
        ("connect/Cargo.toml", &[]),
        ("clients/rust/Cargo.toml", &["taskmaster-protocol"]),
        ("workers/Cargo.toml", &[]),
        ("workflow/Cargo.toml", &[]),
        ("bench/Cargo.toml", &["taskmaster-protocol", "taskmaster-client", "taskmaster-storage"]),
    ] {
        let found = ours(manifest);
        let beyond: Vec<String> = found.into_iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        none(&format!("{manifest} may not depend on"), beyond);
    }
}

#[test]
fn the_engine_and_the_protocol_touch_no_clock_file_socket_thread_or_chance() {
    let banned = [
        "std::time",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "std::process",
        "std::io",
        "SystemTime",
        "Instant::",
        "rand::",
        "getrandom",
        "RandomState",
        "tokio",
        "async ",
    ];
    let mut found = Vec::new();
    for (path, text) in sources() {
        let is_pure =
            ["engine/src", "engine/scheduler/src", "net/protocol/src"].iter().any(|folder| path.starts_with(folder));
        if !is_pure || is_test(&path) {
            continue;
        }
        let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code(before_tests) {
            found.extend(
                banned.iter().filter(|word| line.contains(**word)).map(|word| format!("{path}:{number}: {word}")),
            );
        }
    }
    none("pure crates touch the outside", found);
}

#[test]
fn glommio_stays_behind_the_binary_the_net_and_the_storage() {
    let allowed = ["src/", "net/", "storage/"];
    let mut found = Vec::new();
    for (path, text) in sources() {
        let is_allowed = allowed.iter().any(|folder| path.starts_with(folder)) && !path.starts_with("net/protocol");
        let user = concat!("glommio", "::");
        if !is_allowed && code(&text).any(|(_, line)| line.contains(user)) {
            found.push(path);
        }
    }
    none("glommio is used in", found);
}

#[test]
fn files_open_with_what_they_are_and_stay_short() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//!") {
            found.push(format!("{path} does not open with //!"));
        }
        let lines = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count();
        if lines > LINES_MAX && !is_test(&path) {
            found.push(format!("{path} has {lines} lines, at most {LINES_MAX} are bearable: find the better noun"));
        }
        if path.ends_with("/mod.rs") {
            found.push(format!("{path}: write name.rs beside name/"));
        }
        let stem = Path::new(&path).file_stem().unwrap().to_string_lossy().into_owned();
        if stem
            .split('_')
            .any(|word| ["util", "utils", "common", "manager", "helper", "helpers", "misc"].contains(&word))
        {
            found.push(format!("{path}: say what it is"));
        }
    }
    none("files", found);
}

#[test]
fn nothing_is_left_undone_or_skipped() {
    let banned = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[", "ignore"), concat!("dbg", "!(")];
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code(&text) {
            found.extend(
                banned.iter().filter(|word| line.contains(**word)).map(|word| format!("{path}:{number}: {word}")),
            );
        }
    }
    none("left undone", found);
}

#[test]
fn the_tree_names_no_path_of_one_machine() {
    let banned = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tmp", "/tm"), concat!("/ho", "me/")];
    let mut found = Vec::new();
    for (path, text) in files(&["rs", "md", "toml", "yaml", "yml", "sh", "json", "service"]) {
        for (number, line) in (1..).zip(text.lines()) {
            found.extend(
                banned.iter().filter(|word| line.contains(**word)).map(|word| format!("{path}:{number}: {word}")),
            );
        }
    }
    none("paths of one machine", found);
}

/// Targets of inline links outside code blocks.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else { break };
            found.push((number, target.to_owned()));
            rest = after;
        }
    }
    found
}

/// A heading as the name of an anchor.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut found = Vec::new();
    for (path, text) in files(&["md"]) {
        for (number, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let goal =
                if file.is_empty() { root().join(&path) } else { root().join(&path).parent().unwrap().join(file) };
            if !goal.exists() {
                found.push(format!("{path}:{number}: {target}"));
            } else if !fragment.is_empty() && goal.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&goal).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                if !headings.any(|line| anchor(line.trim_start_matches('#')) == fragment) {
                    found.push(format!("{path}:{number}: {target} (no such heading)"));
                }
            }
        }
    }
    none("links that lead nowhere", found);
}

#[test]
fn every_crate_is_under_the_lints_of_the_workspace() {
    let mut found = Vec::new();
    for (path, text) in files(&["toml"]) {
        if path.ends_with("Cargo.toml") && !path.starts_with("fuzz/") && !text.contains("[lints]\nworkspace = true") {
            found.push(path);
        }
    }
    none("manifests without the workspace's lints", found);
}
