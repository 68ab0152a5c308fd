//! What is long of ended tasks (results, and payloads of those that did not succeed), kept here after it was read from the database, so that
//! whoever asks next, on any node, does not have it read there again.
//!
//! The database stays the one that says how a task ended: a row of its history is never changed, and only bytes of a row that it named
//! come from here, under a key that no other row has.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::store::{Of, RECALL_MAX};
use super::{Request, Status, Value};

/// How long an answer may be away: longer than it can be while the thread of the server runs at all.
const OVERDUE: Duration = Duration::from_secs(1);
const _: () = assert!(RECALL_MAX.as_millis() < OVERDUE.as_millis());

/// A row of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The cluster's number in the database.
    pub cluster: i32,
    /// The end's number in its partition.
    pub number: i64,
    /// The task.
    pub id: u128,
    /// The protocol's number of the state that it ended in.
    pub state: u8,
    /// When, in microseconds since 1970.
    pub finished_us: u64,
}

impl Row {
    /// Databases of several clusters may share a server, and number alike: all that tells their rows apart is in it.
    fn key(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("taskmaster 2026-11 ended task in the history");
        hasher.update(&self.id.to_le_bytes());
        hasher.update(&self.cluster.to_le_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&self.finished_us.to_le_bytes());
        hasher.update(&[self.state]);
        *hasher.finalize().as_bytes()
    }
}

/// A way to what is kept; clones lead to the same.
#[derive(Clone, Debug)]
pub struct Cache {
    requests: mpsc::Sender<Request>,
    status: Arc<Status>,
    keeping_bytes_max: u64,
    blob_bytes_max: usize,
}

impl Cache {
    /// Over the queue of [`super::serve`]. Blobs of more than `blob_bytes_max` bytes are not kept; those on their way to the server may take
    /// `keeping_bytes_max`.
    #[must_use]
    pub fn new(
        requests: mpsc::Sender<Request>,
        status: Arc<Status>,
        keeping_bytes_max: u64,
        blob_bytes_max: usize,
    ) -> Self {
        Self { requests, status, keeping_bytes_max, blob_bytes_max }
    }

    /// What is kept of rows, in their order.
    pub async fn find(&self, rows: &[Row]) -> Vec<Option<Vec<u8>>> {
        let nothing = vec![None; rows.len()];
        if rows.is_empty() || self.status.is_away() {
            return nothing;
        }
        let (send, answer) = oneshot::channel();
        let keys = rows.iter().map(Row::key).collect();
        if self.requests.try_send(Request::Recall(keys, send)).is_err() {
            return nothing;
        }
        match timeout(OVERDUE, answer).await {
            Ok(Ok(values)) => values.into_iter().map(|value| value.map(|value| value.result)).collect(),
            Ok(Err(_)) | Err(_) => nothing,
        }
    }

    /// Keeps what a row has, if there is room for it; nobody waits for that.
    pub fn keep(&self, row: &Row, blob: &[u8]) {
        let len = blob.len();
        if len > self.blob_bytes_max || !self.status.may_keep(len, self.keeping_bytes_max) {
            return;
        }
        let value = Value { of: row.id, made_us: row.finished_us, result: blob.to_vec() };
        if self.requests.try_send(Request::Keep(Of::Ended, row.key(), value)).is_err() {
            self.status.not_kept(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_differ_in_anything_have_other_keys() {
        let row = Row { cluster: 1, number: 2, id: 3, state: 4, finished_us: 5 };
        let others = [
            Row { cluster: 2, ..row },
            Row { number: 1, ..row },
            Row { id: 4, ..row },
            Row { state: 5, ..row },
            Row { finished_us: 6, ..row },
        ];
        assert!(others.iter().all(|other| other.key() != row.key()));
        assert_eq!(Row { ..row }.key(), row.key());
    }
}
