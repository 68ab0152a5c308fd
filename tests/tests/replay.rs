//! `taskmaster replay`: what it says of traces that can be reckoned by hand, of ones that are broken, and of what a node did.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use taskmaster_client::{Client, Retries, Task, TaskError, Worker};

use crate::process::{Setup, binary, directory, iso_time_now};

fn replay(arguments: &[&str], trace: &str) -> Output {
    let mut command = Command::new(binary());
    command.args(["replay", "--trace", "-"]).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    child.stdin.take().unwrap().write_all(trace.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn report(arguments: &[&str], trace: &str) -> Value {
    let output = replay(&[arguments, &["--output", "json"]].concat(), trace);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(arguments: &[&str], trace: &str) -> String {
    let output = replay(arguments, trace);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// A record of SWF: number, submission, run time and processors.
fn record(id: u32, submit: u32, run: u32, processors: u32) -> String {
    format!("{id} {submit} 0 {run} {processors} -1 -1 {processors} {run} -1 1 1 1 1 1 1 -1 -1\n")
}

#[test]
fn a_queue_on_one_slot_waits_as_it_must() {
    let trace =
        ["; MaxProcs: 1\n".to_owned(), record(1, 0, 100, 1), record(2, 0, 50, 1), record(3, 10, 20, 1)].concat();
    let told = report(&["--policy", "fifo"], &trace);
    assert_eq!((&told["tasks"], &told["slots"]), (&Value::from(3), &Value::from(1)));
    let fifo = &told["policies"][0];
    // Waits of 0, 100 and 140 s; slowdowns of 1, 3 and 8.
    assert_eq!(fifo["wait_s"]["mean"], 80.0);
    assert_eq!(fifo["wait_s"]["max"], 140.0);
    assert_eq!(fifo["slowdown"]["mean"], 4.0);
    let told = report(&["--policy", "shortest", "--clairvoyant"], &trace);
    // The shortest that is there first: 50 s, then 20 s, then 100 s.
    assert_eq!(told["policies"][0]["wait_s"]["mean"], (0.0 + 40.0 + 70.0) / 3.0);
    // By their limits, which are their run times, only the one that starts at once is not late.
    let told = report(&["--policy", "deadline"], &trace);
    assert_eq!(told["policies"][0]["late"], 2.0 / 3.0);
    let without = trace
        .replace(" 100 -1 1 1", " -1 -1 1 1")
        .replace(" 50 -1 1 1", " -1 -1 1 1")
        .replace(" 20 -1 1 1", " -1 -1 1 1");
    assert_eq!(report(&["--policy", "fifo"], &without)["policies"][0]["late"], Value::Null);
    assert!(refusal(&["--policy", "deadline"], &without).contains("no task has a deadline or a declared limit"));
    // As many slots as tasks: nobody waits.
    let told = report(&["--policy", "fifo", "--slots", "3"], &trace);
    assert_eq!(told["policies"][0]["wait_s"]["max"], 0.0);
}

#[test]
fn moved_submissions_are_told_seed_by_seed_and_the_same_each_time() {
    let trace: String = (0..200).map(|job| record(job + 1, job * 10, 5 + job * 7 % 30, 1)).collect();
    let trace = format!("; MaxProcs: 1\n{trace}");
    let told = report(&["--seeds", "3"], &trace);
    let by_seed = told["policies"][0]["slowdown"]["by_seed"].as_array().unwrap().clone();
    assert_eq!(by_seed.len(), 3);
    assert!(by_seed[0] != by_seed[1] && by_seed[1] != by_seed[2], "{by_seed:?}");
    let again = report(&["--seeds", "3"], &trace);
    assert_eq!(again["policies"][0]["slowdown"], told["policies"][0]["slowdown"]);
    assert_eq!(again["policies"][1]["slowdown"], told["policies"][1]["slowdown"]);
}

#[test]
fn a_nodes_own_dispatcher_is_replayed() {
    // As by hand above: waits of 0, 100 and 140 s.
    let few = ["; MaxProcs: 1\n".to_owned(), record(1, 0, 100, 1), record(2, 0, 50, 1), record(3, 10, 20, 1)].concat();
    let told = report(&["--dispatcher", "--policy", "fifo"], &few);
    assert_eq!(told["policies"][0]["wait_s"]["mean"], 80.0);
    assert_eq!(told["policies"][0]["wait_s"]["max"], 140.0);
    // Two users, of whom one has tasks of an hour and one of a minute, and more work than two slots can do by day.
    let of = |id: u32| {
        let (user, run) = if id.is_multiple_of(2) { (7, 60) } else { (8, 3_600) };
        format!("{id} {} 0 {run} 1 -1 -1 1 -1 -1 1 {user} 1 1 1 1 -1 -1\n", id * 600)
    };
    let many = std::iter::once("; MaxProcs: 2\n".to_owned()).chain((1..400).map(of)).collect::<String>();
    let policies = ["fifo", "shortest", "auto"].map(|policy| ["--policy", policy]).concat();
    let told = report(&[&["--dispatcher"], policies.as_slice()].concat(), &many);
    let [fifo, shortest, auto] = [0, 1, 2].map(|place| told["policies"][place]["slowdown"]["mean"].as_f64().unwrap());
    let plain = report(&["--policy", "fifo"], &many)["policies"][0]["slowdown"]["mean"].as_f64().unwrap();
    assert!((fifo - plain).abs() < 0.01 * plain, "{fifo} by the dispatcher, {plain} by the scheduler alone");
    assert!(shortest < 0.5 * fifo && auto < 0.7 * fifo, "{told}");
    assert_eq!(told["policies"][0]["refused"], 0);
    assert!(refusal(&["--dispatcher", "--restartable"], &few).contains("cannot be used with"));
}

#[test]
fn a_workflow_is_put_over_its_bound() {
    let trace = r#"{"workflow": {"specification": {"tasks": [
        {"id": "a", "parents": []}, {"id": "b", "parents": ["a"]}, {"id": "c", "parents": ["a"]}]},
        "execution": {"tasks": [{"id": "a", "runtimeInSeconds": 10}, {"id": "b", "runtimeInSeconds": 20},
        {"id": "c", "runtimeInSeconds": 5}]}}}"#;
    let told = report(&["--slots", "2"], trace);
    assert_eq!((&told["tasks"], &told["bound_s"]), (&Value::from(3), &Value::from(30.0)));
    for policy in told["policies"].as_array().unwrap() {
        assert_eq!(policy["makespan_s"], 30.0, "{policy}");
    }
    assert!(refusal(&["--policy", "deadline"], trace).contains("under fifo or auto, not deadline"));
}

#[test]
fn pods_are_placed_on_the_machines_of_a_table() {
    let directory = directory();
    let machines = directory.path().join("machines.csv");
    std::fs::write(&machines, "sn,cpu_milli,memory_mib,gpu,model\na,8000,64000,2,T4\nb,8000,64000,2,T4\n").unwrap();
    let pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n\
        p,1000,1000,2,1000,,LS,Running,0,10,0\nq,1000,1000,1,1000,,LS,Running,0,10,0\nr,1000,1000,1,1000,,LS,Running,0,10,0\n";
    let told = report(&["--machines", machines.to_str().unwrap()], pods);
    let fits = told["fits"].as_array().unwrap();
    for name in ["fragmentation", "future"] {
        let best = fits.iter().find(|fit| fit["fit"] == name).unwrap();
        assert_eq!(best["devices_in_use"], 1.0, "{told:#}");
    }
    assert!(refusal(&[], pods).contains("--machines"));
}

#[test]
fn a_broken_trace_is_refused_with_its_line() {
    let broken = format!("; MaxProcs: 1\n{}2 -5 0 10 1 -1 -1 1 10 -1 1 1 1 1 1 1 -1 -1\n", record(1, 0, 100, 1));
    let said = refusal(&[], &broken);
    assert!(said.contains("standard input:3:"), "{said}");
    assert!(refusal(&[], "").contains("standard input"), "{said}");
    assert!(refusal(&["--policy", "best"], "").contains("none of fifo, shortest, deadline, auto"));
    assert!(refusal(&["--slots", "0"], "").contains("--slots"));
}

#[test]
fn a_plot_has_a_curve_for_each_policy() {
    let directory = directory();
    let file = directory.path().join("plot.svg");
    let trace = ["; MaxProcs: 1\n".to_owned(), record(1, 0, 100, 1), record(2, 0, 50, 1)].concat();
    report(&["--plot", file.to_str().unwrap()], &trace);
    let svg = std::fs::read_to_string(&file).unwrap();
    for text in ["<svg", "Waits", "Bounded slowdowns", "Slots in use", "fifo", "auto"] {
        assert!(svg.contains(text), "no {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_did_is_replayed_from_its_data_directory() {
    let directory = directory();
    let mut setup = Setup::new(&directory);
    let replayed = |setup: &Setup, more: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["replay", "--output", "json", "--data-dir"]).arg(&setup.data_dir).args(more);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let run = async |setup: &Setup| {
        let mut node = setup.start();
        let client = Client::connect(node.address.to_string()).await.unwrap();
        let worker =
            Worker::builder(&client).queue("own").concurrency(2).prefetch(0).handler("nap", |task| async move {
                tokio::time::sleep(Duration::from_millis(task.payload()[0].into())).await;
                if task.attempt() == 1 && task.payload()[0] == 30 {
                    Err(TaskError::new("shaken", "at first"))
                } else {
                    Ok("")
                }
            });
        let worker = worker.start().await.unwrap();
        let retries = || Retries::attempts(2).backoff(Duration::ZERO);
        let tasks = (0..20u8).map(|n| Task::new("nap").queue("own").retries(retries()).payload(vec![30 + n % 3]));
        for outcome in client.submit_many(tasks).await.unwrap() {
            client.result(outcome.id).await.unwrap();
        }
        worker.shutdown().await.unwrap();
        node.terminate();
    };
    run(&setup).await;
    let (code, _, said) = replayed(&setup, &[]);
    assert!(code == Some(1) && said.contains("wal.starts = true"), "{code:?} {said}");
    setup.variables.push(("TASKMASTER_WAL__STARTS", "true".to_owned()));
    run(&setup).await;
    // The first run is there still, and says nothing of starts.
    let (code, told, said) = replayed(&setup, &["--policy", "fifo", "--policy", "shortest"]);
    assert_eq!(code, Some(0), "{said}");
    let told: Value = serde_json::from_str(&told).unwrap();
    // Seven of the twenty failed at first, and are two attempts each.
    assert_eq!((&told["tasks"], &told["skipped"]), (&Value::from(27), &Value::from(20)));
    // Two, and what is on its way while an end is.
    assert!((2..27).contains(&told["slots"].as_u64().unwrap()), "{told}");
    let (_, told, _) = replayed(&setup, &["--policy", "fifo", "--slots", "2"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    // Twenty tasks at once on two places: nine naps of 30 ms and more go before the last, less the time that it came later.
    let longest = told["policies"][0]["wait_s"]["max"].as_f64().unwrap();
    assert!(longest >= 0.1, "{told}");
    let (code, told, said) = replayed(&setup, &["--policy", "fifo", "--slots", "27"]);
    let told: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{code:?} {said}"));
    assert_eq!(told["policies"][0]["wait_s"]["max"], 0.0);
    let between = iso_time_now().await;
    run(&setup).await;
    for slice in [["--until", &between], ["--since", &between]] {
        let (_, told, said) = replayed(&setup, &[&slice[..], &["--policy", "fifo"]].concat());
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{slice:?} {said}"));
        assert_eq!(told["tasks"], 27, "{slice:?}");
    }
    let (code, _, said) = replayed(&setup, &["--since", "2000-01-01T00:00:00Z", "--until", "2001-01-01T00:00:00Z"]);
    assert!(code == Some(2) && said.contains("has no task"), "{code:?} {said}");
}
