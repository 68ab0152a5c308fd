//! The examples do what they say: run task by task in the plan's order, without an engine.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use taskmaster_workflow::{Options, Plan, PlanTask, Work, from_yaml};

fn plan(example: &str, workdir: &Path, vars: &[(&str, &str)]) -> Plan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(example);
    let text = fs::read_to_string(path).expect("the example");
    let options = Options {
        name: example.to_owned(),
        workdir: workdir.to_str().expect("a plain path").to_owned(),
        filedir: String::new(),
        vars: vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    from_yaml(&text, &options).unwrap_or_else(|rejected| panic!("{rejected}"))
}

fn attempt(task: &PlanTask) -> Output {
    let Work::Command(command) = &task.work else { panic!("{} is no process", task.name) };
    let mut child = Command::new(&command.argv[0])
        .args(&command.argv[1..])
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .env("CARGO_HOME", "/nowhere")
        .current_dir(&command.cwd)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let input = command.stdin.clone().unwrap_or_default();
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("a small input");
    child.wait_with_output().expect("an end")
}

/// Runs all tasks one after the other; the last one's standard output, and how many attempts failed.
fn run(plan: &Plan) -> (String, usize) {
    let mut failed = 0;
    let mut last = String::new();
    for task in &plan.tasks {
        let done = (0..task.contract.retry.max_attempts).map(|_| attempt(task)).find(|output| {
            failed += usize::from(!output.status.success());
            output.status.success()
        });
        let output = done.unwrap_or_else(|| panic!("{} failed for good", task.name));
        last = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    (last, failed)
}

#[test]
fn hello_greets_whom_it_is_told_to() {
    let workdir = tempfile::tempdir().expect("a directory");
    let (said, failed) = run(&plan("hello.yaml", workdir.path(), &[("name", "Ada")]));
    assert_eq!((said.as_str(), failed), ("Good morning, Ada\nGood evening, Ada\n", 0));
}

#[test]
fn retry_succeeds_at_the_third_attempt() {
    let workdir = tempfile::tempdir().expect("a directory");
    let (said, failed) = run(&plan("retry.yaml", workdir.path(), &[]));
    assert_eq!((said.as_str(), failed), ("the third attempt was the one\n", 2));
}

/// A directory of files whose names and contents try the scripts.
fn odd_files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    let put = |name: &str, content: &str| fs::write(folder.path().join(name), content).expect("a file");
    put("a b.txt", "alpha beta gamma\n");
    put("quote'\"$(touch pwned)`x`.txt", "alpha beta gamma\n");
    put("-rf", "no line end");
    put("k=v.txt", "alpha\n");
    put("back\\slash.txt", "one\n");
    put("%s*.txt", "two\n");
    put("page.HTML", "<title>hidden</title> shown\n");
    put("trailing ", "three\n");
    put("new\nline.txt", "left out\n");
    put("tab\there.txt", "left out\n");
    put("empty.txt", "");
    put("packed.gz", "left out\n");
    folder
}

#[test]
fn corpus_survives_odd_names_empty_chunks_and_a_second_run() {
    let (workdir, odd) = (tempfile::tempdir().expect("a directory"), odd_files());
    let root = odd.path().to_str().expect("a plain path");
    let vars = [("more_root", root), ("chunks", "70"), ("files_max", "60"), ("bytes_max", "3000000")];
    let plan = plan("corpus.yaml", workdir.path(), &vars);
    assert_eq!(plan.tasks.len(), 3 * 70 + 30);
    let (report, failed) = run(&plan);
    assert_eq!(failed, 0);
    let listed = fs::read_to_string(workdir.path().join("files.tsv")).expect("the list");
    let from_odd: Vec<&str> = listed.lines().filter_map(|line| line.split_once(root).map(|(_, name)| name)).collect();
    let named = ["/%s*.txt", "/-rf", "/a b.txt", "/back\\slash.txt", "/k=v.txt", "/page.HTML"];
    assert_eq!(from_odd[..6], named, "sorted, all of the small directory");
    assert_eq!(from_odd.len(), 8, "{from_odd:?}");
    let count = listed.lines().count();
    assert!((8..=60).contains(&count), "{count}");
    let line = |start: &str| report.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    assert!(line("files ").ends_with(&format!(" {count}")), "{report}");
    let hashes: usize = (0..70)
        .map(|chunk| fs::read_to_string(workdir.path().join(format!("hash/{chunk}"))).expect("hashes").lines().count())
        .sum();
    assert_eq!(hashes, count);
    let words: String = (0..70)
        .map(|chunk| fs::read_to_string(workdir.path().join(format!("count/{chunk}.words"))).expect("words"))
        .collect();
    assert!(words.contains("shown\t1\n"), "the text between tags is counted");
    assert!(!odd.path().join("pwned").exists() && !workdir.path().join("pwned").exists());
    assert_eq!(run(&plan).0, report, "the same sample, the same report, over the remains of the first run");
}
