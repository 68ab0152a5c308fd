//! A replay knows no more than a scheduler would, and says so where a trace does not say enough.

use taskmaster_scheduler::Millis;
use taskmaster_scheduler::critical::project::Random;
use taskmaster_scheduler::order::{Aging, Policy};
use taskmaster_scheduler::replay::wide::{self, Told};
use taskmaster_scheduler::replay::{self, Job, ReplayOptions, Report, Trace, slots, swf, wfformat};
use taskmaster_scheduler::wide::Config;

/// A task of one slot without a limit, by its number, submission, run time, deadline and kind; times in seconds.
fn job(id: u32, [submit, run]: [Millis; 2], deadline: Option<Millis>, kind: u32) -> Job {
    Job {
        id: id.into(),
        line: 0,
        submit: 1000 * submit,
        run: 1000 * run,
        limit: 1000 * run,
        has_limit: false,
        deadline: deadline.map(|deadline| 1000 * deadline),
        width: 1,
        user: kind,
        size: 0,
        keys: [0, kind, 0, 0],
    }
}

fn one_slot(jobs: Vec<Job>) -> Trace {
    Trace { name: String::new(), width: 1, jobs, skipped: 0 }
}

fn replayed(trace: &Trace, policy: Policy, clairvoyant: bool) -> Report {
    replay::run(trace, &ReplayOptions { clairvoyant, ..ReplayOptions::new(policy) })
}

/// Again and again a long task that is due soon comes with ten short ones that have time.
fn bursts(deadlines: bool) -> Trace {
    let mut jobs = Vec::new();
    for burst in 0..40 {
        let mut add = |run, due, kind| {
            let id = u32::try_from(jobs.len()).expect("few tasks");
            jobs.push(job(id, [burst * 1000, run], deadlines.then_some(due), kind));
        };
        (0..10).for_each(|_| add(10, 900, 1));
        add(100, 150, 2);
    }
    one_slot(jobs)
}

#[test]
fn deadlines_order_tasks_of_one_slot() {
    let trace = bursts(true);
    let late = |policy| replayed(&trace, policy, false).late.unwrap();
    let (shortest, deadline) = (late(Policy::Shortest), late(Policy::Deadline));
    // One of eleven is late where the short ones go first, and none once both kinds are known.
    assert!(shortest > 0.07 && deadline < 0.02, "{shortest} {deadline}");
}

#[test]
fn declared_limits_are_deadlines() {
    let mut trace = bursts(false);
    for job in &mut trace.jobs {
        (job.has_limit, job.limit) = (true, if job.run > 50_000 { 150_000 } else { 900_000 });
    }
    let late = |policy| replayed(&trace, policy, false).late.unwrap();
    assert!(late(Policy::Shortest) > 0.07 && late(Policy::Deadline) < 0.02);
}

#[test]
fn who_can_no_longer_meet_its_deadline_goes_last_though_it_could_when_it_came() {
    // The first runs for 100 s. By then the second, which was due first, is late whatever is done.
    let jobs = vec![
        job(0, [0, 100], Some(1000), 0),
        job(1, [1, 50], Some(119), 0),
        job(2, [1, 50], Some(159), 0),
        job(3, [2, 50], None, 0),
    ];
    let report = replayed(&one_slot(jobs), Policy::Deadline, true);
    assert_eq!(report.waits, [0, 199_000, 99_000, 148_000]);
    assert_eq!(report.late, Some(1.0 / 3.0), "one of three that have a deadline");
}

#[test]
fn without_a_deadline_nobody_is_late_and_there_is_no_order_by_it() {
    let trace = bursts(false);
    assert_eq!(replayed(&trace, Policy::Fifo, false).late, None);
    let error = replay::check(&trace, Policy::Deadline).unwrap_err();
    assert!(error.to_string().contains("no task has a deadline or a declared limit"), "{error}");
    for policy in [Policy::Fifo, Policy::Shortest, Policy::Auto] {
        assert_eq!(replay::check(&trace, policy), Ok(()));
    }
    assert_eq!(replay::check(&bursts(true), Policy::Deadline), Ok(()));
}

/// Tasks without a request that wait while another one fills the machine, with run times in one order or the other.
fn unrequested(runs: &[Millis]) -> Trace {
    let mut text = "; MaxProcs: 8\n1 0 -1 1000 8 -1 -1 8 -1 -1 1 9 9 9 1 -1 -1 -1\n".to_owned();
    for (number, run) in runs.iter().enumerate() {
        let (id, submit, width) = (number + 2, number + 1, 1 + number * 7 % 5);
        text += &format!("{id} {submit} -1 {run} {width} -1 -1 {width} -1 -1 1 3 1 1 1 -1 -1 -1\n");
    }
    swf::read("unrequested", &text).expect("a trace")
}

#[test]
fn run_times_that_nobody_declared_are_not_known_before_a_task_of_its_kind_has_ended() {
    let mut random = Random::new(4);
    let mut runs: Vec<Millis> = (0..60).map(|number| 200 + 150 * number).collect();
    for policy in [Policy::Fifo, Policy::Shortest, Policy::Deadline, Policy::Auto] {
        let mut first: Option<Vec<(usize, Millis)>> = None;
        for _ in 0..20 {
            for place in (1..runs.len()).rev() {
                runs.swap(place, random.below(place + 1));
            }
            let trace = unrequested(&runs);
            let submits: Vec<Millis> = trace.jobs.iter().map(|job| job.submit).collect();
            let told = Told { restartable: true, deadlines: policy == Policy::Deadline, ..Told::default() };
            let starts = wide::run(&trace, &submits, Config::new(8, policy), told).starts;
            // All run for 200 s at least.
            let before = |(_, start): &(usize, Millis)| *start < 1_200_000;
            let mut begun: Vec<(usize, Millis)> = starts.into_iter().enumerate().filter(before).collect();
            begun.sort_by_key(|(place, start)| (*start, *place));
            assert!(begun.len() > 2, "{policy:?}: {begun:?}");
            assert_eq!(first.get_or_insert_with(|| begun.clone()), &begun, "{policy:?}");
        }
    }
}

#[test]
fn a_declared_limit_still_bounds_what_goes_ahead_of_a_reservation() {
    // Four of eight slots are taken for 100 s; one that needs all eight waits for them, and of the next two only that may go ahead whose
    // limit is over by then.
    let text = "; MaxProcs: 8\n1 0 -1 100 4 -1 -1 4 100 -1 1 1 1 1 1 -1 -1 -1\n2 1 -1 10 8 -1 -1 8 10 -1 1 1 1 1 1 -1 -1 -1\n\
                3 2 -1 50 4 -1 -1 4 200 -1 1 1 1 1 1 -1 -1 -1\n4 3 -1 50 4 -1 -1 4 60 -1 1 1 1 1 1 -1 -1 -1\n";
    let report = replayed(&swf::read("t", text).unwrap(), Policy::Fifo, false);
    assert_eq!(report.waits[1], 99_000);
    assert_eq!(report.waits[3], 0);
    assert!(report.waits[2] > 0);
}

#[test]
fn fair_shares_do_not_go_by_the_run_time_either() {
    // Nothing has ended yet: what a tenant is charged for its tasks must not depend on how long they will run.
    let starts = |runs: [Millis; 2]| {
        let mut jobs: Vec<Job> = (0..12).map(|id| job(id, [0, runs[id as usize % 2]], None, id % 2)).collect();
        jobs.iter_mut().for_each(|job| job.keys = [0; 4]);
        let trace = Trace { width: 6, ..one_slot(jobs) };
        let options = slots::Options {
            slots: 6,
            policy: Policy::Fifo,
            aging: Aging::NONE,
            lead_max: 1.0,
            waste_max: 0.0,
            floor: 10_000,
            clairvoyant: false,
            cells: 1 << 10,
        };
        slots::run(&trace, &[0; 12], options).starts.iter().map(|start| *start == 0).collect::<Vec<bool>>()
    };
    assert_eq!(starts([100, 10_000]), starts([10_000, 100]));
}

#[test]
fn errors_in_a_workflow_name_the_line_and_the_task() {
    let text = |tasks: &str, runs: &str| {
        format!(
            "{{\"name\": \"}}\\\"x\", \"tasks\": [{{\"id\": \"a\"}}],\n\"workflow\": {{\n\"execution\": {{\"files\": [1, {{}}], \"tasks\": [\n{runs}\n]}},\n\
             \"specification\": {{\n\"tasks\": [\n{tasks}\n]}}}}}}\n"
        )
    };
    let task = |id: &str, parents: &str| format!("{{\"parents\": [{parents}],\n\"id\": \"{id}\"}}");
    let [a, b] = [task("a", ""), task("b", "\"a\"")];
    let ran = "{\"id\": \"a\", \"runtimeInSeconds\": 1},\n{\"id\": \"b\", \"runtimeInSeconds\": 2}";
    assert_eq!(wfformat::read("w", &text(&format!("{a},\n{b}"), ran)).unwrap().len(), 2);
    // Runs are on the lines 4 and 5, tasks from line 9 on, two lines each; the id is on the second.
    let ring = [task("c", ""), task("a", "\"b\""), task("b", "\"a\", \"c\""), task("d", "\"b\"")].join(",\n");
    let broken = [
        (format!("{a},\n{a}"), ran, 12, "two tasks are \"a\""),
        (format!("{a},\n{{\"name\":\n\"x\"}}"), ran, 11, "task 1 has no id"),
        (format!("{a},\n{b},\n{}", task("c", "\"z\"")), ran, 14, "\"c\" needs \"z\""),
        (
            format!("{a},\n{b}"),
            "{\"id\": \"a\", \"runtimeInSeconds\": 1},\n{\"id\": \"b\", \"runtimeInSeconds\": -2}",
            5,
            "\"b\"",
        ),
        (
            format!("{a},\n{b}"),
            "{\"id\": \"a\", \"runtimeInSeconds\": 1},\n{\"id\": \"q\", \"runtimeInSeconds\": 2}",
            5,
            "\"q\" ran",
        ),
        (
            format!("{a},\n{b}"),
            "{\"id\": \"a\", \"runtimeInSeconds\": 1},\n{\"runtimeInSeconds\": 2}",
            5,
            "a run has no id",
        ),
    ];
    for (tasks, runs, line, what) in broken {
        let error = wfformat::read("w", &text(&tasks, runs)).unwrap_err();
        assert!(error.line == line && error.what.contains(what), "{line}, {what}: {error}");
    }
    let error = wfformat::read("w", &text(&ring, ran)).unwrap_err();
    // Lines 11 to 12 and 13 to 14: only these two need each other.
    let found = [(12, "\"a\" is in a ring"), (14, "\"b\" is in a ring")];
    assert!(found.iter().any(|(line, what)| error.line == *line && error.what.contains(what)), "{error}");
    let error = wfformat::read("w", "{\n\"workflow\": {\n\"specification\": {}}}").unwrap_err();
    assert_eq!((error.line, error.what.as_str()), (3, "no list workflow.specification.tasks"));
}
