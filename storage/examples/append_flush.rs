//! Measures the log on a real directory: `append_flush [DIR] [SECONDS]`.
//!
//! Prints the bare append+flush floor, then the log on glommio: one record at a time, many records in large blocks while
//! writes overlap, and reading it all back.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};
use taskmaster_storage::wal::driver::{Wal, recover_dir};
use taskmaster_storage::wal::floor::probe;
use taskmaster_storage::wal::{AppendError, Config, ScanParams};

const IDENTITY: u64 = 1;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let base = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let span = Duration::from_secs(arguments.next().map_or(Ok(2), |text| text.parse())?);
    let dir = base.join("append-flush-example");
    std::fs::create_dir_all(&dir)?;
    for _ in 0..2 {
        let floor = probe(&dir, span)?;
        println!(
            "floor          {:8.0}/s  p50 {:5.0} us  p99 {:5.0} us  direct {}",
            floor.appends_per_s, floor.append_p50_us, floor.append_p99_us, floor.direct
        );
        let path = dir.clone();
        let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(2 << 20);
        let handle = executor.spawn(move || async move { run(&path, span).await })?;
        handle.join().map_err(|error| error.to_string())??;
        std::fs::remove_dir_all(&dir)?;
        std::fs::create_dir_all(&dir)?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

async fn run(dir: &Path, span: Duration) -> Result<(), String> {
    let wal_dir = dir.join("wal");
    let params = ScanParams::whole(IDENTITY);
    let recovered = recover_dir(&wal_dir, params, |_| Ok(())).map_err(|error| error.to_string())?;
    let wal =
        Wal::open(&wal_dir, Config::default(), IDENTITY, 1, recovered.end).await.map_err(|error| error.to_string())?;
    let task = glommio::spawn_local(Rc::clone(&wal).run(|_| ())).detach();
    depth_one(&wal, span).await?;
    streaming(&wal, span).await?;
    wal.close();
    task.await.ok_or("the log's task was cancelled")?.map_err(|error| error.to_string())?;
    println!("stats          {:?}", wal.stats());
    let start = Instant::now();
    let mut bytes = 0;
    let again = recover_dir(&wal_dir, params, |record| {
        bytes += record.bytes.len();
        Ok(())
    });
    let again = again.map_err(|error| error.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    let records = f64::from(u32::try_from(again.records).map_err(|error| error.to_string())?);
    println!("recovery       {:8.0} records/s, {records} records, {bytes} bytes in {seconds:.2} s", records / seconds);
    Ok(())
}

async fn depth_one(wal: &Rc<Wal>, span: Duration) -> Result<(), String> {
    let record = [7u8; 128];
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < span {
        let before = Instant::now();
        let position = wal.append(1, 0, &[&record]).map_err(|error| error.to_string())?;
        wal.wait_durable(position.seq).await.map_err(|error| error.to_string())?;
        times.push(before.elapsed());
    }
    let elapsed = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 1000].as_secs_f64() * 1e6;
    let count = f64::from(u32::try_from(times.len()).map_err(|error| error.to_string())?);
    let made = wal.stats().segments_created;
    print!("log, depth 1   {:8.0}/s  p50 {:5.0} us  p99 {:5.0} us  ", count / elapsed, at(500), at(990));
    println!("p999 {:5.0} us  max {:5.0} us, {made} segments made", at(999), at(1000));
    Ok(())
}

async fn streaming(wal: &Rc<Wal>, span: Duration) -> Result<(), String> {
    let record = [7u8; 128];
    let start = Instant::now();
    let before = wal.stats();
    while start.elapsed() < span {
        let mut last = None;
        for _ in 0..1024 {
            match wal.append(1, 0, &[&record]) {
                Ok(position) => last = Some(position),
                Err(AppendError::Full { .. }) => {
                    let next = wal.durable_seq() + 1;
                    wal.wait_durable(next).await.map_err(|error| error.to_string())?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        if last.is_some() {
            glommio::executor().yield_task_queue_now().await;
        }
    }
    let after = wal.stats();
    let seconds = start.elapsed().as_secs_f64();
    let records = f64::from(u32::try_from(after.records - before.records).map_err(|error| error.to_string())?);
    let flushes = f64::from(u32::try_from(after.flushes - before.flushes).map_err(|error| error.to_string())?);
    println!("log, streaming {:8.0} records/s of 128 bytes, {:.0} flushes/s", records / seconds, flushes / seconds);
    Ok(())
}
