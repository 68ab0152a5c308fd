//! `docs/formats/entry.md` against the records of snapshots and the header of entries.

use rkyv::Archived;
use taskmaster_protocol::{FrameBuffer, Operation, PartitionId};

use super::{Chunk, ContractRecord, QueueRecord, TaskRecord, WorkflowRecord};
use crate::entry;

const PAGE: &str = include_str!("../../../docs/formats/entry.md");

/// Offset, size and name of each field, from the table under a heading.
fn table(heading: &str) -> Vec<(usize, usize, String)> {
    let start = PAGE.find(heading).unwrap_or_else(|| panic!("the page has no \"{heading}\""));
    let lines =
        PAGE[start..].lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells[1].parse().unwrap(), cells[2].parse().unwrap(), cells[3].to_owned())
    };
    lines.skip(2).map(row).collect()
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! check {
    ($name:ident { $($field:ident),* $(,)? }) => {{
        // Fails to compile when a field is missing here.
        let _ = |record: $name| { let $name { $($field: _),* } = record; };
        let (bytes, alignment) = (size_of::<Archived<$name>>(), align_of::<Archived<$name>>());
        let heading = format!("#### `{}`: {bytes} bytes, alignment {alignment}\n", stringify!($name));
        let fields = vec![$((
            core::mem::offset_of!(Archived<$name>, $field),
            size_of_field(|record: &Archived<$name>| &record.$field),
            stringify!($field).to_owned(),
        )),*];
        assert_eq!(table(&heading), fields, "{}", stringify!($name));
    }};
}

#[test]
fn tables_of_snapshot_records_are_their_layouts() {
    check!(Chunk { first, partition, forgotten_ms, queues, contracts, workflows, edges, tasks, bytes });
    check!(QueueRecord {
        rate_milli_per_s,
        depth_max,
        namespace,
        name,
        rate_burst,
        concurrency,
        retention_ms,
        paused,
        draining,
        flag_late,
    });
    check!(ContractRecord { index, canonical });
    check!(WorkflowRecord { id, submitted_us, finished_us, name, edges, rows, continues });
    check!(TaskRecord {
        id,
        workflow,
        at_us,
        due_us,
        deadline_us,
        unique_until_us,
        retained,
        blob,
        error,
        name,
        unique,
        key,
        key_limit,
        contract,
        row,
        failures,
        state,
        marks,
        retention_ms,
        reserved,
    });
}

#[test]
fn table_of_the_entry_header_places_every_field() {
    let mut out = FrameBuffer::new();
    let (time_us, sequence) = (0x0807_0605_0403_0201, 0x1817_1615_1413_1211);
    entry::begin(&mut out, Operation::Complete, PartitionId(0x2221), true, time_us, sequence);
    out.extend_from_slice(b"body of an entry");
    entry::finish(&mut out);
    let expected = [
        ("format", u64::from(entry::ENTRY_FORMAT)),
        ("operation", u64::from(Operation::Complete.number())),
        ("partition", 0x2221),
        ("flags", 1),
        ("time_us", time_us),
        ("sequence", sequence),
        ("body_len", 16),
        ("reserved", 0),
    ];
    let mut end = 0;
    for ((at, bytes, name), (field, value)) in table("#### Entry header: 32 bytes").into_iter().zip(expected) {
        assert_eq!((at, name.as_str()), (end, field));
        end = at + bytes;
        let mut wide = [0u8; 8];
        wide[..bytes].copy_from_slice(&out[at..end]);
        assert_eq!(u64::from_le_bytes(wide), value, "{name}");
    }
    assert_eq!(end, entry::ENTRY_HEADER_BYTES);
}
