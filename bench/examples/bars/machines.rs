//! Bars of queues before one machine: parallel jobs, grid jobs, requests for one device.

use std::error::Error;
use std::time::Instant;

use taskmaster_scheduler::Millis;
use taskmaster_scheduler::order::Policy;
use taskmaster_scheduler::predictor::{Keys, Predictor};
use taskmaster_scheduler::queue::Queue;
use taskmaster_scheduler::replay::published::{self, Order, WaitTaken};
use taskmaster_scheduler::replay::{self, Job, ReplayOptions, Report, Trace, lora as requests, wide as replay_wide};

use crate::Options;
use crate::load::Traces;
use crate::table::Row;

/// The parallel machines: file, EASY and clairvoyant as measured before, what is known to be good, and the part of the
/// gap to be closed.
pub(crate) const MACHINES: [(&str, f64, f64, &str, f64); 3] = [
    ("KTH-SP2-1996-2.1-cln", 91.0, 21.4, "43.2", 0.80),
    ("CTC-SP2.sc15-easy", 54.1, 7.4, "19.4", 0.85),
    ("theta_argonne", 30.2, 7.2, "11.3", 0.85),
];

/// The replay is checked against published figures.
pub(crate) fn published(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let known = [
        (Order::Fcfs, [7273.77, 7842.47]),
        (Order::Sjf, [277.35, 787.89]),
        (Order::Unicep, [22274.74, 11265.31]),
        (Order::F1, [258.37, 698.34]),
        (Order::Wfp3, [f64::NAN, f64::NAN]),
    ];
    let mut rows = Vec::new();
    for (which, file) in ["lublin_256", "lublin_256_new2"].iter().enumerate() {
        let trace = traces.swf(file)?;
        for (order, figures) in known {
            let found = published::mean(&trace, order, WaitTaken::Published);
            let corrected = published::mean(&trace, order, WaitTaken::Corrected);
            let reach = if figures[which].is_nan() { "-".to_owned() } else { format!("{:.2}", figures[which]) };
            let ours = format!("{found:.2} (its wait corrected: {corrected:.2})");
            rows.push(Row::new(format!("{file} {order:?}"), "-".to_owned(), "as published", &reach, ours));
        }
    }
    Ok(rows)
}

pub(crate) fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count().max(1) as f64
}

pub(crate) fn replicas(trace: &Trace, options: &ReplayOptions, seeds: u64) -> Vec<Report> {
    (1..=seeds).map(|seed| replay::run(trace, &ReplayOptions { seed, ..*options })).collect()
}

fn slowdown(reports: &[Report]) -> String {
    let values = || reports.iter().map(|report| report.slowdown_mean);
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    format!("{:.1} ({least:.1}-{most:.1})", mean(values()))
}

/// Weeks that are worse than the plain ones by more than 5%.
pub(crate) fn worse(ours: &[Report], plain: &[Report]) -> f64 {
    let pairs = ours.iter().zip(plain).flat_map(|(ours, plain)| ours.weeks.iter().zip(&plain.weeks));
    let known: Vec<(f64, f64)> = pairs.map(|(a, b)| (*a, *b)).filter(|(a, b)| a.is_finite() && b.is_finite()).collect();
    known.iter().filter(|(ours, plain)| *ours > plain * 1.05).count() as f64 / known.len().max(1) as f64
}

/// Bounded slowdown on parallel machines.
pub(crate) fn wide(traces: &Traces, options: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for (file, easy, best, good, part) in MACHINES {
        let trace = traces.swf(file)?;
        let plain = replicas(&trace, &ReplayOptions::new(Policy::Fifo), options.seeds);
        // What this measure finds between two runs of the same policy.
        let other: Vec<Report> = plain.iter().cycle().skip(1).take(plain.len()).cloned().collect();
        let reach = format!("{:.1} (gap {easy} to {best}, {:.0}%)", easy - part * (easy - best), part * 100.0);
        let variants = [
            ("clairvoyant, capped", ReplayOptions { clairvoyant: true, ..ReplayOptions::new(Policy::Shortest) }),
            ("shortest", ReplayOptions::new(Policy::Shortest)),
            ("auto, restartable", ReplayOptions { restartable: true, ..ReplayOptions::new(Policy::Auto) }),
        ];
        for (name, variant) in variants {
            let ours = replicas(&trace, &variant, options.seeds);
            let closed = 100.0 * (easy - mean(ours.iter().map(|report| report.slowdown_mean))) / (easy - best);
            let text = format!(
                "{}, {closed:.0}% closed, waste {:.1}%, longest wait {} h",
                slowdown(&ours),
                100.0 * mean(ours.iter().map(|report| report.waste)),
                ours.iter().map(|report| report.wait_max).max().unwrap_or(0) / 3_600_000,
            );
            rows.push(Row::new(format!("{file}: {name}"), slowdown(&plain), good, &reach, text));
            let weeks = format!("{:.1}%", 100.0 * worse(&ours, &plain));
            let noise = format!("{:.1}% (EASY with other jitter)", 100.0 * worse(&other, &plain));
            rows.push(Row::new(format!("{file}: {name}: weeks worse"), noise, "6-17%", "2%", weeks));
        }
    }
    Ok(rows)
}

/// Seeds of a replay of single slots, of which the first leaves the submissions as they are.
const SINGLE_SEEDS: u64 = 3;

pub(crate) fn single(trace: &Trace, options: ReplayOptions) -> String {
    let report = |seed| replay::run(trace, &ReplayOptions { seed, ..options });
    let reports: Vec<Report> = (0..SINGLE_SEEDS).map(report).collect();
    let longest = reports.iter().map(|report| report.wait_max).max().unwrap_or(0) / 3_600_000;
    let values = || reports.iter().map(|report| report.slowdown_mean);
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let waste = 100.0 * mean(reports.iter().map(|report| report.waste));
    format!("{:.2} ({least:.2}-{most:.2}; waste {waste:.1}%, longest wait {longest} h)", mean(values()))
}

/// One-slot grid jobs at a load of 0.9.
pub(crate) fn lcg(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut trace = traces.swf("LCG-week1")?;
    let mut rows = Vec::new();
    // As many slots as the work fills to 0.9, by which FIFO is what it was when the bars were set; and as a check of another
    // scale, fewer with the arrivals stretched.
    let whole = (trace.work() as f64 / trace.span() as f64 / 0.9).round();
    for slots in [whole, 440.0] {
        let stretch = whole / slots;
        let is_bar = slots == whole;
        if !is_bar {
            trace.jobs.iter_mut().for_each(|job| job.submit = (job.submit as f64 * stretch) as Millis);
        }
        let base = |policy| ReplayOptions { slots: Some(slots as u32), floor: 1000, ..ReplayOptions::new(policy) };
        let plain = single(&trace, base(Policy::Fifo));
        let bar = |good: &'static str, reach: &'static str| if is_bar { (good, reach) } else { ("-", "-") };
        let variants = [
            ("clairvoyant", ("-", "-"), ReplayOptions { clairvoyant: true, ..base(Policy::Shortest) }),
            ("shortest", bar("11.5 (FIFO 106)", "5"), base(Policy::Shortest)),
            ("auto, restartable", bar("1.76", "1.4"), ReplayOptions { restartable: true, ..base(Policy::Auto) }),
        ];
        for (what, (good, reach), options) in variants {
            let name = format!("LCG week 1, {slots} slots, arrivals x{stretch:.2}: {what}");
            rows.push(Row::new(name, plain.clone(), good, reach, single(&trace, options)));
        }
    }
    Ok(rows)
}

/// Requests for images on one device.
pub(crate) fn lora(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let trace = requests::read("lora_first70", &traces.text("scheduling/alibaba/lora_first70.csv.gz")?)?;
    let base = |policy| ReplayOptions { floor: 1000, slots: Some(1), ..ReplayOptions::new(policy) };
    let plain = single(&trace, base(Policy::Fifo));
    let best = single(&trace, ReplayOptions { clairvoyant: true, ..base(Policy::Shortest) });
    let ours = single(&trace, base(Policy::Shortest));
    Ok(vec![
        Row::new("LoRA requests, 1 GPU: clairvoyant", plain.clone(), "-", "-", best),
        Row::new("LoRA requests, 1 GPU: shortest", plain, "108 (FIFO 397)", "80", ours),
    ])
}

/// Tasks that end after their submission and declared limit.
pub(crate) fn deadlines(traces: &Traces, options: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let figures = [("0.234", 0.215), ("0.184", 0.173), ("0.180", 0.170)];
    let mut rows = Vec::new();
    for ((file, ..), (good, best)) in MACHINES.into_iter().zip(figures) {
        let trace = traces.swf(file)?;
        let late = |variant: ReplayOptions| {
            format!(
                "{:.3}",
                mean(replicas(&trace, &variant, options.seeds).iter().map(|report| report.late.unwrap_or(f64::NAN)))
            )
        };
        let plain = late(ReplayOptions::new(Policy::Fifo));
        let clairvoyant = late(ReplayOptions { clairvoyant: true, ..ReplayOptions::new(Policy::Deadline) });
        let reach = format!("{:.3}", best * 1.03);
        let ours = format!("{} (clairvoyant here {clairvoyant})", late(ReplayOptions::new(Policy::Deadline)));
        rows.push(Row::new(format!("{file}: late"), plain, good, &reach, ours));
    }
    Ok(rows)
}

/// How often run times stay within their predicted 0.9 quantile, predicted at submission and learned at the end.
pub(crate) fn coverage(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for file in ["KTH-SP2-1996-2.1-cln", "CTC-SP2.sc15-easy", "theta_argonne", "LCG-week1"] {
        let trace = traces.swf(file)?;
        let mut predictor = Predictor::new(1 << 16, 10_000);
        // In the order of time: predictions at submission, lessons at the end of an immediate start.
        let mut events: Vec<(Millis, bool, usize)> = Vec::new();
        for (place, job) in trace.jobs.iter().enumerate() {
            events.extend([(job.submit, true, place), (job.submit + job.run, false, place)]);
        }
        events.sort_unstable();
        let keys: Vec<Keys> = trace.jobs.iter().map(|job| Keys::new(&replay_wide::facts(job))).collect();
        let mut made = vec![None; trace.jobs.len()];
        let mut covered = 0usize;
        for (_, is_submission, place) in events {
            let job = &trace.jobs[place];
            let limit = if job.has_limit { job.limit } else { 0 };
            if is_submission {
                let prediction = predictor.predict(&keys[place], limit);
                // What runs to its limit or over it is ended there.
                let run = if limit > 0 { job.run.min(limit) } else { job.run };
                covered += usize::from((run.max(1) as f32).ln() <= prediction.q90 + 1e-6);
                made[place] = Some(prediction);
            } else {
                let run = if limit > 0 { job.run.min(limit) } else { job.run };
                predictor.learn(&keys[place], limit, run as f64, false, made[place].as_ref());
            }
        }
        let part = format!("{:.1}%", 100.0 * covered as f64 / trace.jobs.len() as f64);
        rows.push(Row::new(format!("{file}: q90 coverage"), "-".to_owned(), "83-86%", "89-91%", part));
    }
    Ok(rows)
}

/// The time of a decision: predict, push, pop, and learn, each call timed alone and all together.
pub(crate) fn decision(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let trace = traces.swf("LCG-week1")?;
    let mut predictor = Predictor::new(1 << 16, 1000);
    let keys: Vec<Keys> = trace.jobs.iter().map(|job| Keys::new(&replay_wide::facts(job))).collect();
    for (job, keys) in trace.jobs.iter().zip(&keys) {
        predictor.learn(keys, 0, job.run as f64, false, None);
    }
    let count = trace.jobs.len();
    // The best of a few rounds: the machine has other work, which is not the scheduler's.
    let (mut predict, mut learn, mut whole, mut median, mut tail) = (f64::MAX, f64::MAX, f64::MAX, u64::MAX, u64::MAX);
    for _ in 0..ROUNDS {
        let each = |start: Instant| start.elapsed().as_nanos() as f64 / count as f64;
        let start = Instant::now();
        std::hint::black_box(keys.iter().map(|keys| predictor.predict(keys, 0).rank(1)).sum::<f32>());
        predict = predict.min(each(start));
        let start = Instant::now();
        for (job, keys) in trace.jobs.iter().zip(&keys) {
            predictor.learn(keys, 0, job.run as f64, false, None);
        }
        learn = learn.min(each(start));
        let start = Instant::now();
        let mut queue = Queue::new(Millis::MAX, f64::INFINITY);
        for (task, (job, keys)) in (0u32..).zip(trace.jobs.iter().zip(&keys)) {
            decide(&mut queue, &predictor, task, job, keys);
        }
        whole = whole.min(each(start));
        let mut queue = Queue::new(Millis::MAX, f64::INFINITY);
        let mut times: Vec<u64> = Vec::with_capacity(count);
        for (task, (job, keys)) in (0u32..).zip(trace.jobs.iter().zip(&keys)) {
            let start = Instant::now();
            decide(&mut queue, &predictor, task, job, keys);
            times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        times.sort_unstable();
        median = median.min(times[count / 2]);
        tail = tail.min(times[count * 99 / 100]);
    }
    let text = format!(
        "p50 {median} ns, p99 {tail} ns (clock included); {:.1} M/s; predict {predict:.0} ns, learn {learn:.0} ns",
        1e3 / whole
    );
    let name = "decision with 1,000 waiting: predict, push, pop";
    Ok(vec![Row::new(name, "-".to_owned(), "0.2 us in parts", "p99 1 us, 1 M/s", text)])
}

/// Rounds of the measurement of which the best counts.
const ROUNDS: usize = 7;

fn decide(queue: &mut Queue, predictor: &Predictor, task: u32, job: &Job, keys: &Keys) {
    queue.push(task, job.user, predictor.predict(keys, 0).rank(1), job.submit);
    if task >= 1000 {
        std::hint::black_box(queue.pop(job.submit, |_| 0.0));
    }
}
