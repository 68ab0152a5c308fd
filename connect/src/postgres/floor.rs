//! What the server does at best: a bare binary COPY of rows like ours, encoded beforehand, into a table like a part of ours.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, pin_mut};

use super::{Batch, Error, FinalTask, Place, Session, copy};

/// Bytes per message, and rows per statement and transaction.
const COPY_BYTES: usize = 256 << 10;
const COPY_ROWS: u32 = 50_000;

/// How long `rows` rows with blobs of this many bytes take. The table is made for it and dropped.
///
/// # Errors
/// When the server refuses.
pub async fn floor(session: &mut Session, rows: u32, blob_bytes: usize) -> Result<Duration, Error> {
    let client = &session.client;
    client
        .batch_execute(
            "DROP TABLE IF EXISTS taskmaster.floor; CREATE TABLE taskmaster.floor (LIKE taskmaster.final_task INCLUDING INDEXES)",
        )
        .await?;
    let statement =
        client.prepare(&format!("COPY taskmaster.floor ({}) FROM STDIN (FORMAT binary)", copy::COLUMNS)).await?;
    let mut took = Duration::ZERO;
    for first in (0..rows).step_by(COPY_ROWS as usize) {
        let encoded = encoded(first, COPY_ROWS.min(rows - first), blob_bytes);
        let begun = Instant::now();
        let sink = client.copy_in::<_, Bytes>(&statement).await?;
        pin_mut!(sink);
        for part in encoded {
            sink.feed(part).await?;
        }
        sink.finish().await?;
        took += begun.elapsed();
    }
    client.batch_execute("DROP TABLE taskmaster.floor").await?;
    Ok(took)
}

fn encoded(first: u32, rows: u32, blob_bytes: usize) -> Vec<Bytes> {
    let len = u32::try_from(blob_bytes).unwrap_or(u32::MAX);
    let batch = Batch { partition: 1, bytes: vec![7; blob_bytes], ..Batch::default() };
    let (mut parts, mut out) = (Vec::new(), copy::begin());
    for number in first..first + rows {
        let task = FinalTask {
            id: (1_700_000_000_000u128 << 80) | u128::from(number),
            workflow: 0,
            number: number.into(),
            started_us: 0,
            finished_us: 1_700_000_000_000_000,
            deadline_us: 0,
            contract: 0,
            attempts: 1,
            failures: 0,
            state: 4,
            succeeded: true,
            late: false,
            name: Place::default(),
            error_code: Place::default(),
            error: Place::default(),
            log_tail: Place::default(),
            blob: Place { at: 0, len },
            saved: None,
            particulars: None,
        };
        copy::put_row(&mut out, 1, &batch, &task, 1);
        if out.len() >= COPY_BYTES {
            parts.push(out.split().freeze());
        }
    }
    copy::end(&mut out);
    parts.push(out.freeze());
    parts
}
