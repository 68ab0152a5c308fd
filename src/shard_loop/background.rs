//! The loop's long-lived tasks beside connections: timers, mesh, accepting.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_lite::future::or;
use glommio::channels::shared_channel::ConnectedReceiver;
use glommio::timer::{Timer, sleep};
use taskmaster_engine::Input;
use taskmaster_net::connection::Connection;
use taskmaster_net::listener::Listener;
use taskmaster_protocol::Code;
use taskmaster_storage::datadir::DataDir;
use taskmaster_storage::offload::offload;

use super::{Message, SHARD_SHIFT, ShardLoop, now_us};

/// Shortest sleep of the timer task, so that the rings are looked at between ticks, and its longest.
const SLEEP_MIN: Duration = Duration::from_micros(20);
const SLEEP_MAX: Duration = Duration::from_secs(3_600);
/// How often shard 0 looks at the node's disk and clock.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A clock that went so much further or less than time did was set.
const JUMP_US: i64 = 1_000_000;
/// Wait after a failed accept: descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl ShardLoop {
    /// Ticks the engine whenever it asks to be woken.
    pub(super) async fn timer_task(self: Rc<Self>) {
        loop {
            let wake_us = self.shard.borrow().next_wake_us();
            self.sleeping_until_us.set(wake_us.unwrap_or(u64::MAX));
            let wait = wake_us.map_or(SLEEP_MAX, |wake_us| Duration::from_micros(wake_us.saturating_sub(now_us())));
            or(async { _ = Timer::new(wait.clamp(SLEEP_MIN, SLEEP_MAX)).await }, self.earlier.wait()).await;
            if self.shard.borrow().next_wake_us().is_some_and(|due_us| due_us <= now_us()) {
                self.input(Input::Tick);
                self.turn.ring();
            }
        }
    }

    /// Tells the engine how much room the data directory's disk has, and operators when the node's clock was set. For shard 0.
    pub(super) async fn machine_task(self: Rc<Self>, dir: Arc<DataDir>) {
        let (mut looked, mut clock_us) = (Instant::now(), now_us());
        loop {
            let disk = Arc::clone(&dir);
            // What cannot be known is not told.
            if let Ok(room) = offload(move || disk.room()).await {
                self.input(Input::DiskRoom { bytes: room.bytes, free: room.free });
            }
            sleep(LOOK_EVERY).await;
            let passed_us = i64::try_from(looked.elapsed().as_micros()).unwrap_or(i64::MAX);
            let went_us = now_us().cast_signed() - clock_us.cast_signed();
            (looked, clock_us) = (Instant::now(), now_us());
            let jump_us = went_us.saturating_sub(passed_us);
            if jump_us.abs() >= JUMP_US {
                let (seconds, way) =
                    ((jump_us.unsigned_abs() + 500_000) / 1_000_000, if jump_us > 0 { "forward" } else { "back" });
                let sentence = format!(
                    "this node's clock jumped {seconds} s {way}: delays, deadlines and retention follow it forward and wait while \
                     it catches up; let NTP set it before the node starts"
                );
                self.shard.borrow_mut().give_notice(sentence, false);
                self.perform();
            }
        }
    }

    /// Ends turns. It is woken by the first of the ready tasks that hand something in, and so runs after all of them.
    pub(super) async fn turn_task(self: Rc<Self>) {
        loop {
            self.turn.wait().await;
            self.perform();
        }
    }

    /// Takes messages from one other shard.
    pub(super) async fn mesh_task(self: Rc<Self>, ring: ConnectedReceiver<Vec<Message>>) {
        while let Some(batch) = ring.recv().await {
            for message in batch {
                self.message(message);
            }
            self.turn.ring();
        }
    }

    /// Sends again what found a ring full.
    pub(super) async fn mesh_retry_task(self: Rc<Self>) {
        loop {
            self.mesh_full.wait().await;
            while !self.mesh.flush() {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Accepts connections until the node ends.
    pub(super) async fn accept_task(self: Rc<Self>, listener: Listener, connections_max: u32) {
        loop {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(shard = self.number, "a connection could not be accepted: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            self.last_connection.set(self.last_connection.get() + 1);
            let number = (self.number as u64) << SHARD_SHIFT | self.last_connection.get();
            let connection = Connection::new(number, stream);
            if self.open_connections.fetch_add(1, Ordering::Relaxed) >= connections_max {
                self.open_connections.fetch_sub(1, Ordering::Relaxed);
                let message =
                    format!("{connections_max} connections are open: raise limits.max_connections, or share some");
                connection.refuse(Code::Overloaded, &message);
                connection.close();
                continue;
            }
            self.connections.borrow_mut().insert(number, Rc::clone(&connection));
            glommio::spawn_local(Rc::clone(&connection).write_loop()).detach();
            glommio::spawn_local(connection.read_loop(Rc::clone(&self))).detach();
        }
    }
}
