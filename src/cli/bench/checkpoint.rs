//! `bench --checkpoint URL`: the same load without and with checkpoints to a database, and a bare binary COPY of like rows as the floor.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskmaster_bench::{NodeInfo, Options, Report, postgres_server, server_cpu_s};
use taskmaster_client::Client;
use taskmaster_connect::postgres;

use super::{Arguments, show};
use crate::cli::connect::block_on;
use crate::cli::embedded::Embedded;
use crate::cli::{Exit, Failure, Global};
use crate::config::{ByteSize, Config, DatabaseUrl};

/// Rows of the floor.
const FLOOR_ROWS: u32 = 1_000_000;
/// Longest wait for the last checkpoint.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// Between two looks at how far checkpoints are.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What checkpoints came to.
struct Checkpointed {
    report: Report,
    /// Tasks stored while the load was on, and from its end to the last one.
    stored: (u64, u64),
    /// How long each took.
    took: (Duration, Duration),
    lost: u64,
    /// Part of all processors that the server took while the load was on, if it is on this machine.
    server_share: Option<f64>,
}

/// How far checkpoints were at some moment.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    /// Tasks that had ended.
    ended: u64,
    /// Those of them that were stored.
    stored: u64,
    lost: u64,
    /// CPU time of the server so far, in seconds.
    server_s: Option<f64>,
}

/// Carries `bench --checkpoint` out.
pub(super) fn run(global: &Global, arguments: &Arguments, url: &str, config: &Config) -> Result<Exit, Failure> {
    let options = arguments.options(global.output().is_json())?;
    let mut with = config.clone();
    with.postgres.url = DatabaseUrl(url.to_owned());
    with.postgres.waiting_max = 1_000_000_000;
    with.postgres.waiting_size = ByteSize::gib(64);
    let settings = with.postgres.settings().map_err(|error| Failure::new(Exit::Usage, format!("{error:#}")))?;
    let database = |error: postgres::Error| Failure::new(Exit::Failed, error.to_string());
    let payload = usize::try_from(arguments.payload.0).unwrap_or(usize::MAX);
    let (server, floor) = block_on(async {
        let mut session = postgres::connect(&settings).await.map_err(database)?;
        postgres::migrate(&mut session).await.map_err(database)?;
        let backend = postgres::backend(&session).await.map_err(database)?;
        let floor = postgres::floor(&mut session, FLOOR_ROWS, payload).await.map_err(database)?;
        Ok::<_, Failure>((backend.and_then(postgres_server), floor))
    })?;
    // The machine is not the same from one run to the next: the load is compared with what it is before and after.
    let before = load(config.clone(), options.clone())?;
    let checkpointed = load_checkpointed(with, options.clone(), server)?;
    let after = load(config.clone(), options)?;
    let good = [&before, &checkpointed.report, &after].iter().all(|report| report.is_exact()) && checkpointed.lost == 0;
    let (json, text) = told([&before, &after], &checkpointed, f64::from(FLOOR_ROWS) / floor.as_secs_f64())?;
    show(global, json, &text, good)
}

fn info(node: &Embedded) -> NodeInfo {
    NodeInfo {
        addr: node.address().to_string(),
        data_dir: Some(node.data_dir().to_owned()),
        pid: Some(std::process::id()),
    }
}

fn load(config: Config, options: Options) -> Result<Report, Failure> {
    let node = Embedded::start_private(config, None)?;
    let report = taskmaster_bench::run(&options, &info(&node))?;
    node.stop()?;
    Ok(report)
}

fn load_checkpointed(config: Config, options: Options, server: Option<u32>) -> Result<Checkpointed, Failure> {
    let node = Embedded::start_private(config, None)?;
    let address = node.address().to_string();
    let (stop, stopped) = mpsc::channel();
    let looking = thread::spawn(move || block_on(look(address, server, &stopped)));
    let report = taskmaster_bench::run(&options, &info(&node));
    // The looks end when all is stored.
    let _ = stop.send(());
    let looks = looking.join().map_err(|_| anyhow::anyhow!("the look at checkpoints ended early"))??;
    let report = report?;
    node.stop()?;
    let (Some(first), Some(last)) = (looks.iter().find(|look| look.ended > 0), looks.last()) else {
        return Err(Failure::new(Exit::Failed, "nothing was checkpointed".to_owned()));
    };
    let loaded = looks.iter().find(|look| look.ended >= last.ended).unwrap_or(last);
    let full = looks.iter().find(|look| look.stored >= last.stored).unwrap_or(last);
    Ok(Checkpointed {
        report,
        stored: (loaded.stored - first.stored, full.stored - loaded.stored),
        took: (loaded.at - first.at, full.at - loaded.at),
        lost: last.lost,
        server_share: server_share(first, loaded),
    })
}

fn server_share(from: &Look, to: &Look) -> Option<f64> {
    let cores = thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    Some((to.server_s? - from.server_s?) / (to.at - from.at).as_secs_f64().max(1e-9) / cores)
}

/// Looks at the counters until it is told that the load is over and all is stored.
async fn look(address: String, server: Option<u32>, stopped: &mpsc::Receiver<()>) -> Result<Vec<Look>, Failure> {
    let client = Client::connect(address).await?;
    let mut looks = Vec::new();
    let mut over: Option<Instant> = None;
    loop {
        over = over.or_else(|| (stopped.try_recv() != Err(mpsc::TryRecvError::Empty)).then(Instant::now));
        let (waiting, stored, lost) = counters(&client).await?;
        let server_s = server.and_then(server_cpu_s);
        looks.push(Look { at: Instant::now(), ended: waiting + stored, stored, lost, server_s });
        match over {
            Some(_) if waiting == 0 => return Ok(looks),
            Some(over) if over.elapsed() > CATCH_UP_MAX => {
                return Err(Failure::new(Exit::TimedOut, format!("{waiting} tasks still wait for their checkpoint")));
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Waiting, stored and lost tasks.
async fn counters(client: &Client) -> Result<(u64, u64, u64), Failure> {
    let stats = client.stats().await?;
    let sum = |wanted: &str| {
        let counters = stats.iter().flat_map(|shard| &shard.counters).filter(|(name, _)| name == wanted);
        counters.map(|(_, value)| value).sum()
    };
    Ok((sum("checkpoint_waiting"), sum("postgres_tasks"), sum("checkpoint_lost")))
}

fn told(without: [&Report; 2], with: &Checkpointed, floor: f64) -> Result<(Value, String), Failure> {
    let rate = |count: u64, took: Duration| count as f64 / took.as_secs_f64().max(1e-9);
    let plain = without.iter().map(|report| report.tasks_per_s).sum::<f64>() / 2.0;
    let share = with.report.tasks_per_s / plain;
    let total = with.stored.0 + with.stored.1;
    let overall = rate(total, with.took.0 + with.took.1);
    let loaded = rate(with.stored.0, with.took.0);
    let server =
        with.server_share.map_or_else(String::new, |share| format!("; the server takes {share:.2} of the processors"));
    let catching_up = rate(with.stored.1, with.took.1);
    let lines = [
        ("without checkpoints", format!("{plain:>12.0} tasks/s, before and after")),
        ("with checkpoints", format!("{:>12.0} tasks/s, {share:.2} of it (at least 0.60)", with.report.tasks_per_s)),
        ("stored under load", format!("{loaded:>12.0} tasks/s, {:.2} of the floor{server}", loaded / floor)),
        ("stored afterwards", format!("{catching_up:>12.0} tasks/s, {:.2} of the floor", catching_up / floor)),
        ("stored in all", format!("{overall:>12.0} tasks/s, {total} tasks, {} lost", with.lost)),
        ("floor: bare COPY", format!("{floor:>12.0} rows/s")),
    ];
    let [before, after] = without;
    let mut text = format!("without checkpoints\n\n{before}\n\nwith checkpoints\n\n{}\n\n", with.report);
    text.push_str(&format!("without checkpoints, again\n\n{after}\n\n"));
    lines.iter().for_each(|(name, line)| text.push_str(&format!("  {name:<22}{line}\n")));
    let value = |report: &Report| serde_json::to_value(report).map_err(anyhow::Error::from);
    let json = json!({
        "without": [value(before)?, value(after)?], "with": value(&with.report)?, "share": share, "stored": total, "lost": with.lost,
        "stored_per_s_under_load": loaded, "server_share_under_load": with.server_share, "stored_per_s_afterwards": catching_up,
        "stored_per_s": overall, "floor_rows_per_s": floor,
    });
    Ok((json, text))
}
