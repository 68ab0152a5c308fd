//! What the machine allows: bare durable appends and bare loopback round trips, one after the other.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use taskmaster_storage::wal::floor::probe;

const MESSAGE_BYTES: usize = 64;

/// The floor under every durable request, measured in the same run as what is compared with it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Floor {
    /// Appends of 4 KiB that were flushed one by one, per second, on the file system of the node's data directory.
    /// `None`: no local data directory, or not measured.
    pub append_flush_per_s: Option<f64>,
    /// Exchanges of 64 bytes over one loopback TCP connection between two blocking threads, per second.
    pub loopback_round_trips_per_s: Option<f64>,
}

impl Floor {
    /// Measures each part for `time_s` seconds; 0 measures nothing.
    ///
    /// # Errors
    /// When the directory cannot be written or the loopback interface is not there.
    pub fn measure(data_dir: Option<&Path>, time_s: f64) -> Result<Self> {
        if time_s <= 0.0 {
            return Ok(Self::default());
        }
        let time = Duration::from_secs_f64(time_s);
        let measure = |dir: &Path| probe(dir, time).with_context(|| format!("measuring appends in {}", dir.display()));
        let append_flush_per_s = data_dir.map(measure).transpose()?.map(|floor| floor.appends_per_s);
        Ok(Self { append_flush_per_s, loopback_round_trips_per_s: Some(loopback_round_trips_per_s(time)?) })
    }

    /// Time of one append+flush and one loopback round trip, in microseconds: the least that a durable request takes.
    #[must_use]
    pub fn request_us(&self) -> Option<f64> {
        Some(1e6 / self.append_flush_per_s? + 1e6 / self.loopback_round_trips_per_s?)
    }
}

fn loopback_round_trips_per_s(time: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = std::thread::spawn(move || {
        let mut message = [0u8; MESSAGE_BYTES];
        while far.read_exact(&mut message).is_ok() && far.write_all(&message).is_ok() {}
    });
    let mut message = [7u8; MESSAGE_BYTES];
    let start = Instant::now();
    let mut round_trips = 0u32;
    while start.elapsed() < time || round_trips == 0 {
        near.write_all(&message)?;
        near.read_exact(&mut message)?;
        round_trips += 1;
    }
    let per_s = f64::from(round_trips) / start.elapsed().as_secs_f64();
    drop(near);
    echo.join().expect("the echo does not panic");
    Ok(per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_is_measured_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let floor = Floor::measure(Some(dir.path()), 0.05).unwrap();
        assert!(floor.append_flush_per_s.unwrap() > 1.0);
        assert!(floor.loopback_round_trips_per_s.unwrap() > 1.0);
        assert!(floor.request_us().unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn floor_of_a_distant_node_has_no_appends() {
        let floor = Floor::measure(None, 0.01).unwrap();
        assert_eq!((floor.append_flush_per_s, floor.request_us()), (None, None));
        assert!(Floor::measure(None, 0.0).unwrap().loopback_round_trips_per_s.is_none());
    }
}
