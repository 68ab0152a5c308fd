//! The YAML format: what it means, and how what is wrong with it is said.

use std::fs;
use std::path::Path;

use taskmaster_workflow::{
    Code, Command, OnFailure, Options, Plan, Position, Priority, Rejected, Resources, Work, from_text, from_yaml,
};

fn options() -> Options {
    Options { name: "file".into(), workdir: "/w".into(), filedir: "/f".into(), ..Options::default() }
}

fn read(text: &str) -> Plan {
    from_text(text, &options()).unwrap_or_else(|rejected| panic!("{rejected}\nin:\n{text}"))
}

fn refused(text: &str) -> Rejected {
    from_yaml(text, &options()).expect_err("refused")
}

fn command(plan: &Plan, name: &str) -> Command {
    let task = plan.tasks.iter().find(|task| task.name == name).unwrap_or_else(|| panic!("no task {name}"));
    match &task.work {
        Work::Command(command) => command.clone(),
        other => panic!("{other:?}"),
    }
}

fn env<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    command.env.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

fn parents(plan: &Plan, name: &str) -> Vec<String> {
    let task = plan.tasks.iter().find(|task| task.name == name).expect("the task");
    task.parents.iter().map(|&parent| plan.tasks[parent as usize].name.clone()).collect()
}

#[test]
fn a_small_file_becomes_a_plan() {
    let plan = read("name: hello\ntasks:\n  a: {run: echo a}\n  b: {command: [echo, 1.0, no], needs: a}\n");
    assert_eq!((plan.name.as_str(), plan.tasks.len()), ("hello", 2));
    assert_eq!(command(&plan, "a").argv, ["/bin/sh", "-ec", "echo a"]);
    assert_eq!(command(&plan, "b").argv, ["echo", "1.0", "no"], "texts stay as they are written");
    assert_eq!(parents(&plan, "b"), ["a"]);
    assert_eq!(command(&plan, "a").cwd, "/w");
}

#[test]
fn tasks_may_be_a_list_and_the_name_may_come_from_outside() {
    let plan = read("tasks:\n- {name: a, run: x}\n- {name: b, run: y, needs: [a]}\n");
    assert_eq!((plan.name.as_str(), parents(&plan, "b")), ("file", vec!["a".to_owned()]));
}

#[test]
fn arrays_fan_out_and_needs_are_whole_or_element_wise() {
    let plan = read(
        "tasks:
  chunk: {array: 3, run: 'split {{index}} of {{count}}'}
  hash: {array: '3', run: 'hash {{item}}', needs: [{task: chunk, each: true}]}
  name: {array: [x, y, z], run: 'say {{item}}', needs: [{task: hash, each: true}, chunk]}
  merge: {run: merge, needs: [hash]}
",
    );
    assert_eq!(plan.tasks.len(), 10);
    assert_eq!(command(&plan, "chunk[1]").argv[2], "split 1 of 3");
    assert_eq!(parents(&plan, "hash[2]"), ["chunk[2]"]);
    assert_eq!(parents(&plan, "name[0]"), ["chunk[0]", "chunk[1]", "chunk[2]", "hash[0]"]);
    assert_eq!(parents(&plan, "merge"), ["hash[0]", "hash[1]", "hash[2]"]);
    let element = command(&plan, "name[1]");
    assert_eq!(element.argv[2], "say y");
    assert_eq!(env(&element, "TASKMASTER_ARRAY_INDEX"), Some("1"));
    assert_eq!(env(&element, "TASKMASTER_ARRAY_ITEM"), Some("y"));
    assert_eq!(env(&element, "TASKMASTER_ARRAY_COUNT"), Some("3"));
    assert_eq!(env(&element, "TASKMASTER_TASK"), Some("name"));
    assert_eq!(env(&command(&plan, "merge"), "TASKMASTER_ARRAY_INDEX"), None);
}

#[test]
fn a_need_that_is_both_whole_and_element_wise_is_whole() {
    let plan = read("tasks:\n  a: {array: 2, run: x}\n  b: {array: 2, run: x, needs: [{task: a, each: true}, a]}\n");
    assert_eq!(parents(&plan, "b[0]"), ["a[0]", "a[1]"]);
}

#[test]
fn variables_come_from_the_file_and_may_be_replaced() {
    let text = "vars: {n: 2, dir: '{{workdir}}/d', from: '{{dir}}/{{n}}'}\ntasks:\n  a: {array: '{{n}}', run: 'ls {{from}}'}\n";
    assert_eq!(command(&read(text), "a[1]").argv[2], "ls /w/d/2");
    let mut options = options();
    options.vars.insert("n".into(), "4".into());
    let plan = from_yaml(text, &options).expect("a replaced variable");
    assert_eq!((plan.tasks.len(), command(&plan, "a[3]").argv[2].as_str()), (4, "ls /w/d/4"));
    options.vars.insert("dri".into(), "x".into());
    let rejected = from_yaml(text, &options).expect_err("an undeclared variable");
    assert_eq!(rejected.code(), Code::UnknownVariable);
    assert!(rejected.to_string().contains("did you mean 'dir'"), "{rejected}");
}

#[test]
fn defaults_apply_unless_a_task_says_otherwise() {
    let plan = read(
        "on_failure: continue
defaults: {queue: batch, timeout: 1m, retries: 2, resources: {cpu: 500m, memory: 64MiB, seat: 1}, env: {A: 1, B: 2}, cwd: sub}
tasks:
  a: {run: x}
  b: {run: x, queue: fast, timeout: 1h30m, retries: {max_attempts: 5, backoff: {initial: 100ms, max: 2s, factor: 1.5}, non_retryable: {exit_codes: [64, 2], errors: [Bad]}},
      resources: {cpu: 2, licence: 3}, env: {B: 3}, cwd: /abs, priority: high, deadline: 1d, stdin: hello}
",
    );
    let (a, b) = (&plan.tasks[0].contract, &plan.tasks[1].contract);
    assert_eq!((a.queue.as_deref(), a.timeout_ms, a.retry.max_attempts), (Some("batch"), Some(60_000), 3));
    let seat = ("seat".to_owned(), 1);
    let wanted = Resources { cpu_milli: 500, memory_bytes: 64 << 20, gpu_milli: 0, custom: vec![seat.clone()] };
    assert_eq!(a.resources, wanted);
    assert_eq!((b.queue.as_deref(), b.timeout_ms, b.deadline_ms), (Some("fast"), Some(5_400_000), Some(86_400_000)));
    assert_eq!((a.priority, b.priority, plan.on_failure), (Priority::Normal, Priority::High, OnFailure::Continue));
    let custom = vec![("licence".to_owned(), 3), seat];
    assert_eq!(b.resources, Resources { cpu_milli: 2_000, memory_bytes: 64 << 20, gpu_milli: 0, custom });
    let retry = &b.retry;
    assert_eq!((retry.max_attempts, retry.backoff_initial_ms, retry.backoff_max_ms), (5, 100, 2_000));
    assert_eq!((retry.backoff_factor_centi, &retry.non_retryable_exit_codes[..]), (150, &[2, 64][..]));
    assert_eq!(retry.non_retryable_errors, ["Bad"]);
    let (a, b) = (command(&plan, "a"), command(&plan, "b"));
    assert_eq!((a.cwd.as_str(), b.cwd.as_str(), b.stdin.as_deref()), ("/w/sub", "/abs", Some("hello")));
    assert_eq!((env(&a, "B"), env(&b, "A"), env(&b, "B")), (Some("2"), Some("1"), Some("3")));
}

#[test]
fn tasks_stand_after_those_they_need_whatever_the_file_does() {
    let plan = read("tasks:\n  z: {run: x, needs: [m, a]}\n  m: {run: x, needs: a}\n  a: {run: x}\n  b: {run: x}\n");
    let names: Vec<&str> = plan.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["a", "m", "z", "b"]);
    assert_eq!((parents(&plan, "z"), parents(&plan, "m")), (vec!["a".into(), "m".into()], vec!["a".to_owned()]));
}

#[test]
fn payloads_are_what_workers_read() {
    let plan = read(
        "tasks:
  a: {command: [ls, -l], env: {A: b}, stdin: in, timeout: 2s, retries: {non_retryable: {exit_codes: [3]}}}
  b: {kind: noop}
",
    );
    let (kind, payload) = plan.tasks[0].kind_and_payload(true);
    let payload = String::from_utf8(payload).expect("JSON is text");
    assert_eq!(kind, "exec/a");
    assert_eq!(
        payload,
        "{\"command\":[\"ls\",\"-l\"],\"env\":{\"A\":\"b\",\"TASKMASTER_TASK\":\"a\",\"TASKMASTER_WORKDIR\":\"/w\",\
         \"TASKMASTER_WORKFLOW\":\"file\"},\"cwd\":\"/w\",\"stdin\":\"in\",\"timeout_ms\":2000,\
         \"non_retryable\":[3],\"truncate\":true}"
    );
    assert_eq!(plan.tasks[1].kind_and_payload(true), ("noop".into(), Vec::new()));
}

#[test]
fn a_kind_says_the_group_and_is_one_that_a_node_takes() {
    let name = "é".repeat(60);
    let mut plan = read("tasks:\n  one: {run: x, array: 2}\n  two: {run: x}\n");
    let kinds: Vec<_> = plan.tasks.iter().map(|task| task.kind_and_payload(true).0).collect();
    assert_eq!(kinds, ["exec/one", "exec/one", "exec/two"]);
    assert_eq!(plan.tasks[0].kind_and_payload(false).0, "exec");
    plan.tasks[0].group = format!("a,\n{name}");
    let kind = plan.tasks[0].kind_and_payload(true).0;
    assert_eq!(kind, format!("exec/a{}", "é".repeat(49)));
}

#[test]
fn what_no_worker_could_run_is_found() {
    let plan = read(
        "tasks:\n  a: {run: x, array: 3, resources: {memory: 4GiB, seat: 2}}\n  b: {run: x, resources: {seat: 1}}\n",
    );
    let seats = |units| vec![("seat".to_owned(), units)];
    let small = Resources { cpu_milli: 2_000, memory_bytes: 1 << 30, gpu_milli: 0, custom: seats(1) };
    let problems = plan.impossible(&small);
    assert_eq!(problems.len(), 1, "one for the whole array: {problems:?}");
    assert_eq!(problems[0].code, Code::ImpossibleResources);
    assert!(problems[0].sentence.contains("'a[0]'") && problems[0].sentence.contains("memory"), "{problems:?}");
    assert_eq!(plan.impossible(&Resources { memory_bytes: 8 << 30, custom: seats(2), ..small }), []);
}

#[test]
fn tasks_for_own_workers_carry_kind_and_payload() {
    let plan = read("tasks:\n  a: {kind: send-email, payload: '{\"to\": {{index}}}', array: 2}\n");
    assert_eq!(plan.tasks[1].work, Work::Kind { kind: "send-email".into(), payload: "{\"to\": 1}".into() });
}

#[test]
fn anchors_aliases_merges_and_extension_keys_work() {
    let plan = read(
        "x-base: &base {env: {A: 1}, timeout: 5s, queue: one}
tasks:
  a: {<<: *base, run: x}
  b: {<<: [{queue: two}, *base], run: y, timeout: 6s}
",
    );
    assert_eq!(env(&command(&plan, "a"), "A"), Some("1"));
    let (a, b) = (&plan.tasks[0].contract, &plan.tasks[1].contract);
    assert_eq!((a.timeout_ms, a.queue.as_deref()), (Some(5_000), Some("one")));
    assert_eq!((b.timeout_ms, b.queue.as_deref()), (Some(6_000), Some("two")));
}

/// One broken file: its text, the code, words of the sentence, and the place.
type Case = (&'static str, Code, &'static [&'static str], Option<(usize, usize)>);

const CASES: &[Case] = &[
    ("", Code::EmptyWorkflow, &["no tasks"], Some((1, 1))),
    ("name: x\n", Code::EmptyWorkflow, &["no tasks"], Some((1, 1))),
    ("tasks: {}\n", Code::EmptyWorkflow, &["no tasks"], Some((1, 8))),
    ("tasks: []\n", Code::EmptyWorkflow, &["no tasks"], Some((1, 8))),
    ("tasks:\n  a: {run: x\n", Code::YamlSyntax, &["not YAML", "unclosed"], Some((2, 6))),
    ("tasks:\n\ta: b\n", Code::YamlSyntax, &["not YAML"], None),
    ("- a\n- b\n", Code::WrongType, &["mapping", "a list"], Some((1, 1))),
    (
        "tasks:\n  a: {run: x}\n  b: {run: x, neds: a}\n",
        Code::UnknownKey,
        &["'neds'", "did you mean 'needs'"],
        Some((3, 15)),
    ),
    ("taks:\n  a: {run: x}\n", Code::UnknownKey, &["'taks'", "did you mean 'tasks'"], Some((1, 1))),
    ("tasks:\n  a: {run: x, image: y}\n", Code::UnknownKey, &["'image'", "it has"], Some((2, 15))),
    ("tasks:\n  a: {run: x}\n  a: {run: y}\n", Code::DuplicateKey, &["'a'", "twice"], Some((3, 3))),
    ("tasks:\n- {name: a, run: x}\n- {name: a, run: y}\n", Code::DuplicateName, &["'a'", "2:10"], Some((3, 10))),
    ("tasks:\n- {run: x}\n", Code::MissingKey, &["'name'"], Some((2, 3))),
    ("tasks:\n  a: {}\n", Code::MissingKey, &["'a'", "does nothing", "'run'"], Some((2, 6))),
    ("tasks:\n  a: {needs: b}\n", Code::MissingKey, &["'run'"], Some((2, 6))),
    ("tasks:\n  a: {run: x, command: [y]}\n", Code::ConflictingKeys, &["more than one"], Some((2, 6))),
    ("tasks:\n  a: {run: x, payload: y}\n", Code::ConflictingKeys, &["'payload'"], None),
    ("tasks:\n  a: {kind: k, stdin: y}\n", Code::ConflictingKeys, &["'stdin'"], None),
    ("tasks:\n  a: {name: b, run: x}\n", Code::ConflictingKeys, &["remove 'name'"], None),
    ("tasks:\n  a: {command: ls -l}\n", Code::WrongType, &["list", "'run'"], Some((2, 16))),
    ("tasks:\n  a: {command: []}\n", Code::BadValue, &["no program"], None),
    ("tasks:\n  a: {run: [x]}\n", Code::WrongType, &["a text", "a list"], Some((2, 12))),
    ("tasks:\n  a b: {run: x}\n", Code::BadName, &["'a b'", "letters"], Some((2, 3))),
    (
        "tasks:\n  a: {run: x, needs: [bild]}\n  build: {run: x}\n",
        Code::UnknownTask,
        &["needs 'bild'", "did you mean 'build'"],
        Some((2, 23)),
    ),
    ("tasks:\n  a: {run: x, needs: a}\n", Code::Cycle, &["needs itself", "a -> a"], Some((2, 3))),
    (
        "tasks:\n  z: {run: x}\n  a: {run: x, needs: [z, c]}\n  b: {run: x, needs: a}\n  c: {run: x, needs: b}\n",
        Code::Cycle,
        &["3 tasks wait for each other", "a -> b -> c -> a"],
        Some((3, 3)),
    ),
    ("tasks:\n  a: {run: x, array: 0}\n", Code::BadValue, &["no elements"], Some((2, 22))),
    ("tasks:\n  a: {run: x, array: []}\n", Code::BadValue, &["no elements"], None),
    ("tasks:\n  a: {run: x, array: many}\n", Code::BadValue, &["'many'", "whole number"], None),
    ("tasks:\n  a: {run: x, array: 100001}\n", Code::TooManyTasks, &["100001", "100000"], Some((2, 22))),
    ("tasks:\n  a: {run: x, array: 99999999999999999999}\n", Code::BadValue, &["whole number"], None),
    (
        "tasks:\n  a: {run: x, array: 60000}\n  b: {run: x, array: 60000}\n",
        Code::TooManyTasks,
        &["120000"],
        Some((3, 3)),
    ),
    (
        "tasks:\n  a: {run: x, array: 2000}\n  b: {run: x, array: 2000, needs: a}\n",
        Code::TooManyDependencies,
        &["4000000", "each"],
        Some((3, 3)),
    ),
    (
        "tasks:\n  a: {run: x, array: 3}\n  b: {run: x, array: 4, needs: [{task: a, each: true}]}\n",
        Code::ArrayMismatch,
        &["4 elements", "has 3"],
        Some((3, 40)),
    ),
    (
        "tasks:\n  a: {run: x}\n  b: {run: x, array: 4, needs: [{task: a, each: true}]}\n",
        Code::ArrayMismatch,
        &["'a' is no array"],
        None,
    ),
    (
        "tasks:\n  a: {run: x, array: 4}\n  b: {run: x, needs: [{task: a, each: true}]}\n",
        Code::ArrayMismatch,
        &["'b' is no array"],
        None,
    ),
    ("tasks:\n  a: {run: x, needs: [{each: true}]}\n", Code::MissingKey, &["names no 'task'"], None),
    ("tasks:\n  a: {run: x, needs: [{task: a, each: perhaps}]}\n", Code::BadValue, &["'perhaps'", "true, false"], None),
    (
        "tasks:\n  a: {run: 'x {{hots}}'}\nvars: {host: h}\n",
        Code::UnknownVariable,
        &["'hots'", "did you mean 'host'"],
        Some((2, 12)),
    ),
    ("tasks:\n  a: {run: 'x {{index}}'}\n", Code::UnknownVariable, &["'array'"], Some((2, 12))),
    ("tasks:\n  a: {run: x, array: {{n}}}\n", Code::WrongType, &["quotes"], Some((2, 23))),
    ("vars: {index: 3}\ntasks: {a: {run: x}}\n", Code::BadName, &["'index'", "built in"], Some((1, 8))),
    ("tasks:\n  a: {run: x, timeout: 30}\n", Code::BadValue, &["no unit", "30s"], Some((2, 24))),
    ("tasks:\n  a: {run: x, timeout: 0s}\n", Code::BadValue, &["longer"], None),
    ("tasks:\n  a: {run: x, timeout: 3 fortnights}\n", Code::BadValue, &["unit", "'timeout'"], None),
    ("tasks:\n  a: {run: x, priority: hihg}\n", Code::BadValue, &["'hihg'", "did you mean 'high'"], None),
    ("on_failure: explode\ntasks:\n  a: {run: x}\n", Code::BadValue, &["cancel, continue"], None),
    ("tasks:\n  a: {run: x, retries: -1}\n", Code::BadValue, &["'-1'"], None),
    ("tasks:\n  a: {run: x, retries: {max_attempts: 0}}\n", Code::BadValue, &["from 1 to 1000"], None),
    ("tasks:\n  a: {run: x, retries: {attempts: 3}}\n", Code::UnknownKey, &["'attempts'"], None),
    ("tasks:\n  a: {run: x, retries: {backoff: {initial: 5s, max: 1s}}}\n", Code::BadValue, &["shorter"], None),
    ("tasks:\n  a: {run: x, retries: {backoff: {factor: 0.5}}}\n", Code::BadValue, &["from 1 to 100"], None),
    ("tasks:\n  a: {run: x, retries: {backoff: {max: 99d}}}\n", Code::BadValue, &["thirty days"], None),
    ("tasks:\n  a: {run: x, retries: {non_retryable: {errors: ['a,b']}}}\n", Code::BadName, &["'a,b'"], None),
    ("tasks:\n  a: {run: x, resources: {gpu: 9999}}\n", Code::ImpossibleResources, &["gpu"], None),
    ("tasks:\n  a: {run: x, retries: {non_retryable: {exit_codes: [256]}}}\n", Code::BadValue, &["255"], None),
    (
        "tasks:\n  a: {run: x, resources: {cpu: 9999}}\n",
        Code::ImpossibleResources,
        &["cpu", "no worker"],
        Some((2, 32)),
    ),
    ("tasks:\n  a: {run: x, resources: {memory: 1000TiB}}\n", Code::ImpossibleResources, &["memory"], None),
    ("tasks:\n  a: {run: x, resources: {memory: lots}}\n", Code::BadValue, &["256MiB"], None),
    ("tasks:\n  a: {run: x, resources: {memroy: 1GiB}}\n", Code::UnknownKey, &["did you mean 'memory'"], None),
    ("tasks:\n  a: {run: x, env: {1A: x}}\n", Code::BadName, &["'1A'"], None),
    ("tasks:\n  a: {run: x, env: [A]}\n", Code::WrongType, &["mapping"], None),
    ("tasks:\n  a: *nowhere\n", Code::YamlSyntax, &["not YAML"], None),
    ("tasks: &t\n  a: *t\n", Code::YamlSyntax, &["never end"], None),
    ("tasks: {a: {run: !secret x}}\n", Code::YamlSyntax, &["tag"], None),
    ("tasks: {a: {run: x}}\n---\ntasks: {b: {run: x}}\n", Code::YamlSyntax, &["second document"], Some((2, 1))),
    ("tasks: {a: {run: \"x\\0y\"}}\n", Code::BadValue, &["NUL"], None),
    ("tasks: {[a]: {run: x}}\n", Code::WrongType, &["key must be a text"], None),
    ("tasks: nothing\n", Code::WrongType, &["mapping from names"], None),
];

#[test]
fn what_is_wrong_is_said_with_a_code_a_sentence_and_a_place() {
    for (text, code, words, place) in CASES {
        let rejected = refused(text);
        let said = rejected.to_string();
        let Some(problem) = rejected.problems().iter().find(|problem| problem.code == *code) else {
            panic!("no {code} in: {said}\nfor:\n{text}");
        };
        for word in *words {
            assert!(said.contains(word), "no '{word}' in: {said}\nfor:\n{text}");
        }
        if let Some((line, column)) = *place {
            assert_eq!(problem.at, Some(Position { line, column }), "{said}\nfor:\n{text}");
        }
    }
}

#[test]
fn all_problems_of_a_file_are_reported_together_in_its_order() {
    let rejected = refused("tasks:\n  a: {run: x, timeout: 3}\n  b: {rnu: x}\n  c: {run: x, priority: top}\n");
    let lines: Vec<usize> = rejected.problems().iter().filter_map(|problem| problem.at.map(|at| at.line)).collect();
    assert_eq!(lines, [2, 3, 3, 4], "{rejected}");
}

#[test]
fn problems_of_names_are_reported_beside_those_of_values() {
    let rejected = refused(
        "tasks:
  fetch: {run: x, timeout: 30}
  'build it': {rnu: make, needs: fetch}
  test: {run: x, needs: [biuld, 'build it']}
  ship: {command: ship it, needs: [test]}
",
    );
    let codes: Vec<Code> = rejected.problems().iter().map(|problem| problem.code).collect();
    let expected =
        [Code::BadValue, Code::BadName, Code::MissingKey, Code::UnknownKey, Code::UnknownTask, Code::WrongType];
    assert_eq!(codes, expected, "{rejected}");
    let lost = refused("tasks:\n- {run: x}\n- {name: b, run: x, needs: a}\n");
    assert_eq!(lost.problems().len(), 1, "a task without a name may be the one that is needed: {lost}");
}

#[test]
fn many_problems_are_counted_not_listed() {
    let mut text = String::from("tasks:\n");
    (0..200).for_each(|number| text.push_str(&format!("  t{number}: {{rnu: x}}\n")));
    let rejected = refused(&text);
    assert_eq!(rejected.problems().len(), Rejected::PROBLEMS_MAX);
    assert!(rejected.to_string().ends_with("and 350 more"), "{rejected}");
}

#[test]
fn nested_aliases_are_refused_before_they_grow() {
    let mut text = String::from("x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("x-{level}: &a{level} [{aliases}]\n"));
    }
    assert_eq!(refused(&text).code(), Code::FileTooLarge);
    let mut chain = String::from("x-0: &a0 [x]\n");
    (1..2_000).for_each(|level| chain.push_str(&format!("x-{level}: &a{level} [*a{}]\n", level - 1)));
    assert_eq!(refused(&chain).code(), Code::FileTooLarge);
    assert!(matches!(refused(&"[".repeat(100_000)).code(), Code::FileTooLarge | Code::YamlSyntax));
    assert!(matches!(refused(&"- ".repeat(100_000)).code(), Code::FileTooLarge | Code::YamlSyntax));
}

#[test]
fn commands_are_bounded_however_short_the_file() {
    let big = "y".repeat(100_000);
    let uses = "{{big}}".repeat(10);
    let one = format!("vars: {{big: {big}}}\ntasks: {{a: {{run: 'x {uses}'}}}}\n");
    assert_eq!(refused(&one).code(), Code::CommandTooLarge);
    let many = format!("vars: {{big: {big}}}\ntasks: {{a: {{array: 100000, run: 'x {{{{big}}}}'}}}}\n");
    assert_eq!(refused(&many).code(), Code::CommandTooLarge);
}

#[test]
fn many_uses_of_a_large_text_are_refused_before_they_are_made() {
    let big = "y".repeat(800_000);
    let uses = vec!["'{{big}}'"; 200_000].join(", ");
    let many = format!("vars: {{big: {big}}}\ntasks: {{a: {{command: [{uses}]}}}}\n");
    assert_eq!(refused(&many).code(), Code::CommandTooLarge);
    let empty = vec!["''"; 950_000].join(", ");
    assert_eq!(refused(&format!("tasks: {{a: {{command: [x, {empty}]}}}}\n")).code(), Code::CommandTooLarge);
}

#[test]
fn ten_thousand_unknown_names_are_refused_quickly() {
    let mut text = String::from("tasks:\n");
    (0..10_000).for_each(|task| text.push_str(&format!("  t{task}: {{run: x, needs: u{task}}}\n")));
    let started = std::time::Instant::now();
    assert_eq!(refused(&text).code(), Code::UnknownTask);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn equal_terms_are_shared() {
    let plan = read("tasks:\n  a: {run: x, timeout: 1s}\n  b: {run: y, timeout: 1000ms}\n  c: {run: z}\n");
    assert!(std::sync::Arc::ptr_eq(&plan.tasks[0].contract, &plan.tasks[1].contract));
    assert!(!std::sync::Arc::ptr_eq(&plan.tasks[0].contract, &plan.tasks[2].contract));
}

#[test]
fn the_largest_array_is_read() {
    let plan = read("tasks:\n  a: {array: 99999, run: 'x {{index}}'}\n  b: {run: y, needs: a}\n");
    assert_eq!((plan.tasks.len(), plan.dependencies()), (100_000, 99_999));
}

#[test]
fn no_prefix_and_no_changed_byte_panics() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/corpus.yaml")).expect("there");
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)).step_by(23) {
        let _ = from_yaml(&text[..end], &options());
    }
    for (place, _) in text.char_indices().step_by(101) {
        for junk in ["{", "]", "\t", "\n", "&a ", "*a", "!", "%", "\u{0}", "- ", ": "] {
            let _ = from_yaml(&format!("{}{junk}{}", &text[..place], &text[place..]), &options());
        }
    }
}

#[test]
fn the_examples_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("the examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            read(&fs::read_to_string(&path).expect("readable"));
            seen += 1;
        }
    }
    assert!(seen >= 3);
}

#[test]
fn names_leave_room_for_the_index() {
    let plan = read(&format!("tasks: {{{}: {{run: x, array: 99999}}}}\n", "n".repeat(120)));
    assert_eq!(plan.tasks[99_998].name.len(), 127);
    assert_eq!(refused(&format!("tasks: {{{}: {{run: x}}}}\n", "n".repeat(121))).code(), Code::BadName);
}

#[test]
fn codes_are_distinct() {
    let mut texts: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), Code::ALL.len());
}
