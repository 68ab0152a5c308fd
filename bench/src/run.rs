//! A run: connect, measure the floor, start the generator threads, watch, and put the report together.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use taskmaster_protocol::limits;

use crate::connection::Connection;
use crate::control::{Control, Greeting};
use crate::floor::Floor;
use crate::generator::{ELSEWHERE, Gate, Generator, Outcome, Plan, Shared};
use crate::machine;
use crate::options::{NodeInfo, Options};
use crate::report::{Config, Latency, Report, count};
use crate::routes::{Place, Routes};
use crate::schedule::Clock;
use crate::submission::Encoder;

const STACK_BYTES: usize = 1 << 20;

/// Drives the node as asked and reports.
///
/// # Errors
/// An option is out of range, the node cannot be reached, refuses what it should take, breaks the protocol or a payload,
/// closes a connection, or leaves requests unanswered for longer than the stall limit. Lost and duplicated tasks are no
/// error here: see [`Report::is_exact`].
pub fn run(options: &Options, node: &NodeInfo) -> Result<Report> {
    run_nodes(options, std::slice::from_ref(node))
}

/// Like [`run()`], over all nodes of a cluster, given by the address of any shard of each: every batch goes to the node that
/// leads its partition.
///
/// # Errors
/// As [`run()`]; also when there are too few connections to subscribe at every shard.
pub fn run_nodes(options: &Options, nodes: &[NodeInfo]) -> Result<Report> {
    options.validate()?;
    let greetings = nodes.iter().map(|node| Ok(Control::connect(&node.addr)?.1)).collect::<Result<Vec<Greeting>>>()?;
    let sites: Vec<Site<'_>> = nodes.iter().zip(&greetings).map(|(node, greeting)| Site { node, greeting }).collect();
    let greeting = greetings.first().context("at least one node")?;
    let mut controls = connect_shards(&sites)?;
    let mut scouts = nodes.iter().map(|node| Ok(Control::connect(&node.addr)?.0)).collect::<Result<Vec<Control>>>()?;
    let shards = sites.iter().map(|site| u16::try_from(site.shards())).collect::<Result<Vec<u16>, _>>()?;
    let routes = if nodes.len() > 1 { Some(Routes::learn(&mut scouts, shards.clone())?) } else { None };
    let replicas = if nodes.len() > 1 { scouts[0].leaders()?.replication.min(u32::try_from(nodes.len())?) } else { 1 };
    let places = match &routes {
        Some(routes) => routes.places(),
        None => (0..shards[0]).map(|shard| Place { node: 0, shard }).collect(),
    };
    let needed = if nodes.len() > 1 { places.len() * options.threads as usize } else { 0 };
    ensure!(
        options.connections as usize >= needed,
        "{needed} connections are needed for one per thread and shard of each node, not {}",
        options.connections
    );
    let floor = Floor::measure(nodes[0].data_dir.as_deref(), options.floor_s)?;
    let run = random();
    let mut crews = Vec::new();
    for thread in 0..options.threads {
        crews.push(Crew::connect(options, &sites, &places, run, thread)?);
    }
    let shared = Shared { clock: Clock::start(), done: AtomicU64::new(0), abort: AtomicBool::new(false), routes };
    let (load, outcomes) = drive(options, nodes, &shared, crews, &mut controls, &mut scouts)?;
    let config = config(options, nodes, greeting, replicas);
    report(options, nodes, config, floor, load, outcomes)
}

/// A number that tells runs apart.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Starts the threads, watches them, and collects what they found out.
fn drive(
    options: &Options,
    nodes: &[NodeInfo],
    shared: &Shared,
    crews: Vec<Crew>,
    controls: &mut [Control],
    scouts: &mut [Control],
) -> Result<(Load, Vec<Outcome>)> {
    let mut generators = Vec::new();
    for (number, crew) in (0..).zip(crews) {
        let plan = plan(options, number, crew.credit);
        let generator = Generator::new(plan, crew.encoder, crew.producers, crew.workers_from, shared)?;
        generators.push((generator, crew.connections));
    }
    let count = generators.len();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<_> {
        let _over = Over(&is_over);
        if let Some(routes) = &shared.routes {
            let is_over = &is_over;
            scope.spawn(move || routes.scout(scouts, is_over));
        }
        let (filled, all_filled) = channel();
        let (running, ended) = channel::<()>();
        let (mut threads, mut starts) = (Vec::new(), Vec::new());
        for (generator, mut connections) in generators {
            let (start, load_from_ns) = channel();
            starts.push(start);
            let gate = Gate { filled: filled.clone(), load_from_ns };
            let (running, abort) = (running.clone(), &shared.abort);
            let builder = thread::Builder::new().name("bench".to_owned()).stack_size(STACK_BYTES);
            threads.push(builder.spawn_scoped(scope, move || {
                let _running = running;
                let outcome = generator.run(&mut connections, &gate);
                abort.fetch_or(outcome.is_err(), Ordering::Relaxed);
                outcome
            })?);
        }
        drop(running);
        all_filled.iter().take(count).for_each(drop);
        let from_ns = shared.clock.now_ns();
        for start in starts {
            // A thread that is not there any more has an error, which is collected below.
            let _ = start.send(from_ns);
        }
        wait(&ended, Duration::from_secs_f64(options.warmup_s));
        let before = Spent::so_far(controls, nodes);
        watch(&ended, shared, options.progress);
        let joined = threads.into_iter().map(|thread| thread.join().expect("a generator does not panic"));
        let outcomes = first_cause(joined.collect())?;
        let spent = Spent::so_far(controls, nodes).since(before);
        Ok((Load { measure_from_ns: from_ns + nanoseconds(options.warmup_s), spent }, outcomes))
    })
}

/// Says that the run is over when it is dropped, however it ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A node and what it said in its hello.
struct Site<'a> {
    node: &'a NodeInfo,
    greeting: &'a Greeting,
}

impl Site<'_> {
    fn shards(&self) -> usize {
        self.greeting.shard_ports.len().max(1)
    }

    /// The address of one of its shards, in turn.
    fn shard_addr(&self, number: usize) -> Result<String> {
        let (addr, ports) = (&self.node.addr, &self.greeting.shard_ports);
        if ports.len() < 2 {
            return Ok(addr.clone());
        }
        let (host, _) = addr.rsplit_once(':').with_context(|| format!("\"{addr}\" is not host:port"))?;
        Ok(format!("{host}:{}", ports[number % ports.len()]))
    }
}

/// When the measurement began and what the node spent on it.
struct Load {
    measure_from_ns: u64,
    spent: Spent,
}

/// The outcomes, or the error that made the other threads give up.
fn first_cause(results: Vec<Result<Outcome>>) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut errors = Vec::new();
    for result in results {
        match result {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => errors.push(error),
        }
    }
    errors.sort_by_key(|error| error.to_string().contains(ELSEWHERE));
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(outcomes),
    }
}

/// The connections of one generator thread. It has a queue of its own, so that its tasks come back to it.
struct Crew {
    connections: Vec<Connection>,
    producers: usize,
    workers_from: usize,
    encoder: Encoder,
    credit: u32,
}

impl Crew {
    fn connect(options: &Options, sites: &[Site<'_>], places: &[Place], run: u64, thread: u32) -> Result<Self> {
        let run = run.wrapping_add(u64::from(thread));
        let queue = format!("bench-{:06x}", run & 0xFF_FFFF);
        let encoder = Encoder::new(&queue, run, options.payload_bytes, options.retention_ms);
        let own = (thread..options.connections).step_by(options.threads as usize).count();
        let credit = options.credit(sites[0].greeting.credit_max.min(limits::CREDIT_MAX));
        let roles: &[(bool, bool)] = if options.split { &[(true, false), (false, true)] } else { &[(true, true)] };
        let mut connections = Vec::new();
        for (_, is_worker) in roles {
            for at in 0..own {
                let place = places[(at + thread as usize) % places.len()];
                let addr = sites[place.node].shard_addr(place.shard.into())?;
                let (mut control, attached) = Control::connect(&addr)?;
                if *is_worker {
                    control.subscribe(&queue, 0)?;
                }
                let partitions = attached.partitions();
                if let Some(policy) = options.policy.filter(|_| at == 0) {
                    set_policy(sites, &queue, policy)?;
                }
                let spread = at * partitions.len() / own;
                connections.push(Connection::new(control.into_stream(), place, partitions, spread)?);
            }
        }
        let workers_from = connections.len() - own;
        Ok(Self { connections, producers: own, workers_from, encoder, credit })
    }
}

/// Sets the policy of a queue in every partition of a single node.
fn set_policy(sites: &[Site<'_>], queue: &str, policy: u16) -> Result<()> {
    anyhow::ensure!(sites.len() == 1, "a policy can be chosen for a single node");
    for shard in 0..sites[0].shards() {
        let (mut control, greeting) = Control::connect(&sites[0].shard_addr(shard)?)?;
        for partition in greeting.partitions() {
            control.set_policy(queue, policy, partition)?;
        }
    }
    Ok(())
}

/// One connection per shard, since each shard tells its own counters.
fn connect_shards(sites: &[Site<'_>]) -> Result<Vec<Control>> {
    let shards = sites.iter().flat_map(|site| (0..site.shards()).map(move |number| (site, number)));
    shards.map(|(site, number)| Ok(Control::connect(&site.shard_addr(number)?)?.0)).collect()
}

fn plan(options: &Options, thread: u32, credit: u32) -> Plan {
    let threads = u64::from(options.threads);
    let share = |tasks: u64| tasks / threads + u64::from(u64::from(thread) < tasks % threads);
    let (tasks, duration_s) = options.goal();
    let own = (thread..options.connections).step_by(options.threads as usize).count();
    Plan {
        batch: options.batch,
        window_frames: options.window_frames() as usize,
        backlog_tasks: options.backlog_tasks(u32::try_from(own).expect("a share of a u32")),
        credit,
        completion_rows: options.completion_rows(),
        rate_per_s: options.rate_per_s.map(|rate| rate / f64::from(options.threads)),
        queued: share(options.queued),
        warmup_ns: nanoseconds(options.warmup_s),
        duration_ns: nanoseconds(duration_s),
        tasks: if tasks == u64::MAX { u64::MAX } else { share(tasks) },
        stall_ns: nanoseconds(options.stall_s),
        verify: options.verify,
    }
}

/// Nanoseconds of a checked number of seconds; infinity is the end of time.
fn nanoseconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds).map_or(u64::MAX, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Waits until the threads have ended, but at most so long. Whether they have ended.
fn wait(ended: &Receiver<()>, time: Duration) -> bool {
    matches!(ended.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
}

/// Waits for the threads and shows each second how they do.
fn watch(ended: &Receiver<()>, shared: &Shared, progress: bool) {
    let shown = progress && std::io::stderr().is_terminal();
    let (mut since, mut done_before) = (Instant::now(), shared.done.load(Ordering::Relaxed));
    while !wait(ended, Duration::from_secs(1)) {
        let done = shared.done.load(Ordering::Relaxed);
        let per_s = (done - done_before) as f64 / since.elapsed().as_secs_f64();
        (since, done_before) = (Instant::now(), done);
        if shown {
            eprint!("\r\x1b[K{} tasks done, {} tasks/s", count(done as f64), count(per_s));
        }
    }
    if shown {
        eprint!("\r\x1b[K");
        // A terminal that is gone is no reason to lose the report.
        let _ = std::io::stderr().flush();
    }
}

/// What the nodes have used since their start.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    flushes: Option<u64>,
    wal_bytes: Option<u64>,
    record_bytes: Option<u64>,
    cpu_s: Option<f64>,
    rss_bytes_max: Option<u64>,
}

impl Spent {
    fn so_far(controls: &mut [Control], nodes: &[NodeInfo]) -> Self {
        let mut spent = Self::default();
        let add = |sum: &mut Option<u64>, more: Option<u64>| *sum = sum.map_or(more, |sum| Some(sum + more?));
        for control in controls {
            // A node without counters is still worth measuring.
            let names = ["wal_flushes", "wal_bytes", "wal_record_bytes"];
            let [flushes, wal_bytes, record_bytes] = control.counters(names).unwrap_or_default();
            add(&mut spent.flushes, flushes);
            add(&mut spent.wal_bytes, wal_bytes);
            add(&mut spent.record_bytes, record_bytes);
        }
        let pids = || nodes.iter().map(|node| node.pid);
        Self {
            cpu_s: pids().map(|pid| machine::cpu_s(pid?)).sum(),
            rss_bytes_max: pids().map(|pid| machine::rss_bytes_max(pid?)).try_fold(0, |most, rss| Some(most.max(rss?))),
            ..spent
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            flushes: self.flushes.zip(before.flushes).map(|(now, then)| now.saturating_sub(then)),
            wal_bytes: self.wal_bytes.zip(before.wal_bytes).map(|(now, then)| now.saturating_sub(then)),
            record_bytes: self.record_bytes.zip(before.record_bytes).map(|(now, then)| now.saturating_sub(then)),
            cpu_s: self.cpu_s.zip(before.cpu_s).map(|(now, then)| now - then),
            rss_bytes_max: self.rss_bytes_max,
        }
    }
}

fn config(options: &Options, nodes: &[NodeInfo], greeting: &Greeting, replicas: u32) -> Config {
    let node = &nodes[0];
    Config {
        nodes: nodes.len() as u64,
        replicas: replicas.into(),
        mode: if options.is_open_loop() { "open" } else { "closed" },
        batch: options.batch,
        connections: options.connections,
        split: options.split,
        threads: options.threads,
        window: options.window_frames(),
        payload_bytes: options.payload_bytes,
        queued: options.queued,
        rate_per_s: options.rate_per_s,
        duration_s: options.duration_s,
        warmup_s: options.warmup_s,
        retention_ms: options.retention_ms,
        addr: node.addr.clone(),
        server: greeting.server.clone(),
        shards: greeting.shard_ports.len().max(1) as u64,
        partitions: greeting.partition_shards.len() as u64,
        data_dir: node.data_dir.clone(),
        file_system: node.data_dir.as_deref().and_then(machine::file_system),
        kernel: machine::kernel(),
        cpus: thread::available_parallelism().map_or(0, |cpus| cpus.get() as u64),
        version: env!("CARGO_PKG_VERSION"),
    }
}

fn report(
    options: &Options,
    nodes: &[NodeInfo],
    config: Config,
    floor: Floor,
    Load { measure_from_ns, spent }: Load,
    outcomes: Vec<Outcome>,
) -> Result<Report> {
    let mut outcomes = outcomes.into_iter();
    let mut all = outcomes.next().context("at least one generator thread")?;
    let (mut lost, mut duplicated) = (all.ledger.missing(), all.ledger.duplicated);
    for outcome in outcomes {
        all.submit.add(&outcome.submit)?;
        all.initiation.add(&outcome.initiation)?;
        all.end_to_end.add(&outcome.end_to_end)?;
        lost += outcome.ledger.missing();
        duplicated += outcome.ledger.duplicated;
        all.tallies.add(&outcome.tallies);
    }
    let tallies = all.tallies;
    let (tasks, until_ns) = match options.queued {
        0 => (all.end_to_end.len(), tallies.last_done_ns),
        _ => (tallies.steady, tallies.submitted_ns),
    };
    let generator_s = Duration::from_nanos(tallies.cpu_ns).as_secs_f64();
    let is_shared = nodes.iter().any(|node| node.pid == Some(std::process::id()));
    let shared_s = if is_shared { generator_s } else { 0.0 };
    ensure!(tasks > 0 || lost > 0, "no task was measured: the run ended within its warm-up");
    let elapsed_s = Duration::from_nanos(until_ns.saturating_sub(measure_from_ns).max(1)).as_secs_f64();
    Ok(Report {
        tasks,
        elapsed_s,
        tasks_per_s: tasks as f64 / elapsed_s,
        submit_us: Latency::of(&all.submit),
        initiation_us: Latency::of(&all.initiation),
        end_to_end_us: Latency::of(&all.end_to_end),
        verified: options.verify,
        lost,
        duplicated,
        redelivered: tallies.redelivered,
        refused_completions: tallies.refused_completions,
        overloaded: tallies.overloaded,
        moved: tallies.moved,
        late_sends: tallies.late_sends,
        flushes: spent.flushes,
        wal_bytes: spent.wal_bytes,
        record_bytes: spent.record_bytes,
        rss_bytes_max: spent.rss_bytes_max,
        cpu_s: spent.cpu_s.map(|cpu_s| ((cpu_s - shared_s).max(0.0) * 1e3).round() / 1e3),
        generator_ns_per_task: tallies.cpu_ns as f64 / tallies.handled.max(1) as f64,
        floor,
        config,
    })
}
