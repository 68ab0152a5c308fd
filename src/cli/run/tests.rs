//! Behaviour of `run` against an in-memory server: real workers, real processes, no node.

use taskmaster_client::TestServer;

use super::*;
use crate::output::Shape;

fn arguments(file: &Path, workdir: &Path) -> Arguments {
    Arguments {
        file: file.to_owned(),
        variables: Vec::new(),
        speed: 1_000.0,
        recorded_resources: false,
        no_memory: false,
        workdir: Some(workdir.to_owned()),
        concurrency: Some(4),
        cpu: None,
        memory: None,
        resources: Vec::new(),
        config: None,
        shards: None,
        data_dir: None,
    }
}

fn global() -> Global {
    Global { addr: None, output: Shape::Json, namespace: None, verbose: 0 }
}

/// Runs a workflow text and gives its exit and its work directory.
async fn run_text(text: &str) -> (Exit, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flow.yaml");
    std::fs::write(&file, text).unwrap();
    let arguments = arguments(&file, folder.path());
    let plan = read_plan(&arguments).unwrap();
    let offer = offer(&plan, &global(), &arguments).unwrap();
    let client = Client::builder().connect_in_memory(&TestServer::start()).await.unwrap();
    let mut stop = Stop::listen().unwrap();
    let exit = follow(&client, &plan, offer.as_ref(), &mut stop, false, global().output()).await.unwrap();
    (exit, folder)
}

#[tokio::test]
async fn a_workflow_of_commands_runs_in_order_and_succeeds() {
    let text = "name: chain\ntasks:\n  write: {run: \"echo one > a.txt\"}\n  \
                more: {run: \"cat a.txt a.txt > b.txt\", needs: write}\n  \
                many: {run: \"cat b.txt > c.{{index}}\", needs: more, array: 5}\n";
    let (exit, folder) = run_text(text).await;
    assert_eq!(exit, Exit::Success);
    assert_eq!(std::fs::read_to_string(folder.path().join("c.4")).unwrap(), "one\none\n");
}

#[tokio::test]
async fn a_failed_task_cancels_its_descendants_and_exits_with_6() {
    let text =
        "name: broken\ntasks:\n  bad: {run: \"exit 3\", retries: 0}\n  after: {run: \"touch after\", needs: bad}\n";
    let (exit, folder) = run_text(text).await;
    assert_eq!(exit.number(), 6);
    assert!(!folder.path().join("after").exists());
}

#[test]
fn problems_of_a_file_are_told_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.yaml");
    std::fs::write(&file, "name: bad\ntasks:\n  a: {run: \"true\", needs: b}\n").unwrap();
    let failure = read_plan(&arguments(&file, folder.path())).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.to_string().contains("bad.yaml:3:"), "{failure}");
}

#[test]
fn resources_that_no_worker_has_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big.yaml");
    std::fs::write(&file, "name: big\ntasks:\n  a: {run: \"true\", resources: {cpu: 2000}}\n").unwrap();
    let arguments = arguments(&file, folder.path());
    let plan = read_plan(&arguments).unwrap();
    let failure = offer(&plan, &global(), &arguments).unwrap_err();
    assert!(failure.to_string().contains("asks for 2000000m of cpu"), "{failure}");
}

#[test]
fn with_an_address_the_nodes_own_workers_do_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flow.yaml");
    std::fs::write(&file, "name: a\ntasks:\n  a: {run: \"true\"}\n").unwrap();
    let mut arguments = arguments(&file, folder.path());
    arguments.concurrency = None;
    let plan = read_plan(&arguments).unwrap();
    let global = Global { addr: Some("127.0.0.1:1".into()), ..global() };
    assert!(offer(&plan, &global, &arguments).unwrap().is_none());
}
