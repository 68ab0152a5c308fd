//! The sessions of a worker: one for each shard of each node, as the map has them.
//!
//! Invariant: at most one session per shard. A session ends by itself when its shard is gone and nothing is left to do.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::session::{Line, Offer, Session};
use crate::error::Error;

/// How long a start waits for nodes that are slow to answer, once one has.
const SLOW_NODES: Duration = Duration::from_millis(500);

/// The sessions that run.
pub(super) struct Fleet {
    pub(super) offer: Arc<Offer>,
    running: Arc<Mutex<HashSet<(u64, u16)>>>,
    /// Each session holds a clone: the channel closes when all have ended.
    alive: mpsc::Sender<()>,
}

impl Fleet {
    pub(super) fn new(offer: Arc<Offer>, alive: mpsc::Sender<()>) -> Self {
        Self { offer, running: Arc::default(), alive }
    }

    fn running(&self) -> MutexGuard<'_, HashSet<(u64, u16)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session with every shard.
    ///
    /// # Errors
    /// When one cannot be had; with several nodes when none can, or one refuses.
    pub(super) async fn begin(&self) -> Result<(), Error> {
        let topology = self.offer.cluster.topology();
        let has_company = topology.nodes().len() > 1;
        let mut opening = JoinSet::new();
        let mut sessions: Vec<(Session, Option<Line>)> = Vec::new();
        for (at, place) in topology.places().enumerate() {
            let session = Session::new(Arc::clone(&self.offer), place.key());
            let line = session.opening(place);
            opening.spawn(async move { (at, line.await) });
            sessions.push((session, None));
        }
        let mut failure = None;
        let mut give_up: Option<Instant> = None;
        loop {
            let ended = match give_up {
                Some(give_up) => timeout_at(give_up, opening.join_next()).await.unwrap_or(None),
                None => opening.join_next().await,
            };
            let Some(ended) = ended else { break };
            let (at, line) = ended.map_err(|error| Error::lost(format!("the opening task ended: {error}")))?;
            match line {
                Ok(line) => {
                    sessions[at].1 = Some(line);
                    give_up = has_company.then(|| Instant::now() + SLOW_NODES);
                }
                Err(Error::Refused(refusal)) if !refusal.is_temporary() => return Err(refusal.into()),
                Err(error) if !has_company => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if sessions.iter().all(|(_, line)| line.is_none()) => return Err(error),
            _ => {}
        }
        for (session, line) in sessions {
            self.spawn(session, line);
        }
        Ok(())
    }

    /// Begins sessions with shards that have none.
    pub(super) fn complete(&self) {
        let topology = self.offer.cluster.topology();
        for place in topology.places() {
            let is_running = self.running().contains(&place.key());
            if !is_running {
                self.spawn(Session::new(Arc::clone(&self.offer), place.key()), None);
            }
        }
    }

    fn spawn(&self, session: Session, line: Option<Line>) {
        let key = session.key();
        self.running().insert(key);
        let (running, alive) = (Arc::clone(&self.running), self.alive.clone());
        tokio::spawn(async move {
            session.run(line).await;
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            drop(alive);
        });
    }
}
