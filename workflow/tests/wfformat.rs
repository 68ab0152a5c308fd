//! WfCommons instances: the repository's own fixtures, and every recorded one where the traces are at hand.

use std::fs;
use std::path::Path;

use taskmaster_workflow::{Code, Plan, Work, from_text, from_wfformat, instances};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wfformat").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn good(name: &str) -> Plan {
    from_wfformat(&fixture(&format!("good/{name}.json"))).expect("a good fixture")
}

fn task<'a>(plan: &'a Plan, name: &str) -> &'a taskmaster_workflow::PlanTask {
    plan.tasks.iter().find(|task| task.name == name).expect("a task of the fixture")
}

#[test]
fn diamond_keeps_run_times_sizes_and_edges() {
    let plan = good("diamond");
    assert_eq!((plan.name.as_str(), plan.tasks.len(), plan.dependencies(), plan.depth()), ("diamond", 4, 4, 3));
    let right = task(&plan, "right");
    assert_eq!((right.group.as_str(), right.parents.as_slice()), ("branch", &[0][..]));
    let Work::Replay(replay) = &right.work else { panic!("recorded tasks are replays") };
    assert_eq!((replay.runtime_s, replay.memory_bytes), (2.5, 96 << 20));
    assert_eq!((replay.input_bytes, replay.output_bytes), (1_024, 256));
    assert_eq!((replay.avg_cpu_percent, replay.cores), (95.0, 2.0));
    assert_eq!(task(&plan, "sink").parents, [1, 2]);
    assert_eq!(plan.warnings, []);
}

#[test]
fn bounds_of_the_fixtures_are_those_computed_by_hand() {
    let plan = good("diamond");
    assert_eq!((plan.critical_path_s(), plan.total_work_s()), (5.5, 8.0));
    assert_eq!((plan.bound_s(1), plan.bound_s(2), plan.bound_s(100)), (8.0, 5.5, 5.5));
    let plan = good("fork-join-50");
    assert_eq!((plan.tasks.len(), plan.depth(), plan.dependencies()), (50, 3, 96));
    assert_eq!(plan.critical_path_s(), 2.0 + 2.0 + 1.25);
}

#[test]
fn speed_divides_run_times_and_leaves_sizes() {
    let mut plan = good("diamond");
    plan.speed_up(1_000.0);
    assert!((plan.critical_path_s() - 0.005_5).abs() < 1e-12);
    let Work::Replay(replay) = &plan.tasks[0].work else { panic!("recorded tasks are replays") };
    assert_eq!(replay.memory_bytes, 64 << 20);
}

#[test]
fn a_replay_is_a_task_of_the_replay_kind() {
    let plan = good("diamond");
    let (kind, payload) = plan.tasks[1].kind_and_payload(true);
    assert_eq!((&*kind, payload.as_slice()), ("replay/branch", &br#"{"ms":4000.0,"memory_bytes":134217728}"#[..]));
}

#[test]
fn recorded_resources_are_asked_for_only_on_demand() {
    let mut plan = good("diamond");
    assert_eq!(task(&plan, "right").contract.resources, Default::default());
    plan.demand_recorded_resources();
    let resources = &task(&plan, "right").contract.resources;
    assert_eq!((resources.cpu_milli, resources.memory_bytes), (2_000, 96 << 20));
}

#[test]
fn format_1_4_is_read_too() {
    let plan = good("chain-1.4");
    assert_eq!((plan.tasks.len(), plan.critical_path_s()), (3, 6.0));
    let Work::Replay(replay) = &plan.tasks[1].work else { panic!("recorded tasks are replays") };
    assert_eq!((replay.input_bytes, replay.output_bytes, replay.memory_bytes), (20, 30, 1_024));
    assert_eq!(plan.tasks[1].group, "step");
}

#[test]
fn broken_instances_are_refused_with_a_code_and_a_sentence() {
    let cases: &[(&str, Code, &[&str])] = &[
        ("cycle", Code::Cycle, &["wait for each other", "source -> left -> sink -> source"]),
        ("unknown-parent", Code::UnknownTask, &["'left'", "'sorce'", "did you mean 'source'"]),
        ("negative-runtime", Code::BadRuntime, &["'right'", "-3.5"]),
        ("missing-runtime", Code::MissingRuntime, &["'right'", "runtimeInSeconds"]),
        ("missing-execution", Code::MissingRuntime, &["workflow.execution"]),
        ("missing-specification", Code::JsonShape, &["specification"]),
        ("missing-workflow", Code::JsonShape, &["workflow"]),
        ("missing-task-name", Code::JsonShape, &["name"]),
        ("duplicate-id", Code::DuplicateName, &["'left'"]),
        ("unknown-execution", Code::UnknownExecution, &["'rihgt'"]),
        ("runtime-is-text", Code::JsonShape, &["fast"]),
        ("empty", Code::EmptyWorkflow, &["no tasks"]),
        ("negative-size", Code::JsonShape, &["-1"]),
        ("truncated", Code::JsonSyntax, &["ends too early"]),
        ("trailing-comma", Code::JsonSyntax, &["not JSON"]),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wfformat/bad");
    assert_eq!(fs::read_dir(folder).expect("the fixtures").count(), cases.len(), "a fixture without a case");
    for (name, code, words) in cases {
        let rejected = from_text(&fixture(&format!("bad/{name}.json")), &Default::default()).expect_err(name);
        let text = rejected.to_string();
        assert!(rejected.problems().iter().any(|problem| problem.code == *code), "{name}: {text}");
        for word in *words {
            assert!(text.contains(word), "{name}: no '{word}' in: {text}");
        }
        if matches!(code, Code::JsonSyntax | Code::JsonShape) && *name != "missing-specification" {
            assert!(rejected.problems()[0].at.is_some(), "{name} has no place: {text}");
        }
    }
}

#[test]
fn names_that_would_disturb_a_terminal_are_refused() {
    let text = fixture("good/diamond.json").replace("\"left\"", "\"le\\u001bft\"");
    let rejected = from_wfformat(&text).expect_err("an escape character");
    assert_eq!(rejected.code(), Code::BadName);
    assert!(!rejected.to_string().contains('\u{1b}'), "{rejected}");
    let text = fixture("good/diamond.json").replace("\"left\"", &format!("\"{}\"", "l".repeat(129)));
    assert_eq!(from_wfformat(&text).expect_err("too long").code(), Code::BadName);
}

#[test]
fn every_prefix_of_an_instance_is_refused_without_a_panic() {
    let text = fixture("good/diamond.json");
    let whole = text.trim_end();
    for end in (0..whole.len()).step_by(7) {
        from_wfformat(&whole[..end]).expect_err("a prefix");
    }
}

#[test]
fn every_recorded_instance_parses_and_has_bounds() {
    let (folder, which) = match instances::folder() {
        Some(folder) => (folder, "recorded instances"),
        None => (instances::fixtures(), "fixtures only (no traces at hand)"),
    };
    let found = instances::instances(&folder).expect("readable instances");
    let (mut tasks, mut largest) = (0, 0);
    for (name, text) in &found {
        let plan = from_wfformat(text).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
        assert_eq!(plan.warnings, [], "{name}");
        let order = plan.topological_order().expect("acyclic");
        assert!(order.is_sorted(), "{name}: parents stand before their children");
        assert_eq!(order.len(), plan.tasks.len(), "{name}");
        let (path, work) = (plan.critical_path_s(), plan.total_work_s());
        assert!(path > 0.0 && path <= work * (1.0 + 1e-9), "{name}: critical path {path}, work {work}");
        assert!(plan.bound_s(1) >= work && plan.bound_s(1 << 20) >= path, "{name}");
        assert!(plan.bound_s(8) >= plan.bound_s(16), "{name}");
        tasks += plan.tasks.len();
        largest = largest.max(plan.tasks.len());
    }
    println!("{which}: {} instances, {tasks} tasks, the largest has {largest}", found.len());
    if which == "recorded instances" {
        assert!(found.len() >= 103, "only {} recorded instances", found.len());
    } else {
        assert!(found.len() >= 4);
    }
}
