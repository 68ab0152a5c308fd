//! `docs/formats/entry.md` against the records of the log and of snapshots.

use raft::eraftpb::{ConfState, Entry, HardState};
use rkyv::Archived;
use taskmaster_protocol::{FrameBuffer, Operation};

use super::histories::{HistoryRecord, NameRecord, VersionRecord};
use super::restored::states::{RestoredChunk, RestoredHistory, RestoredStates};
use super::{Chunk, ContractRecord, EventRecord, QueueRecord, StreamRecord, TaskRecord, WorkflowRecord};
use crate::entry::{self, Settings, Verb};
use crate::replica::conf;
use crate::replica::log::Position;
use crate::replica::record::{self, EntryView, Removed, kind};
use crate::shard::snapshots::{HEAD_BYTES, Head, tag};

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
    check!(Chunk {
        first,
        partition,
        forgotten_ms,
        last_retained,
        checkpointed,
        queues,
        contracts,
        workflows,
        edges,
        tasks,
        states,
        histories,
        versions,
        pieces,
        names,
        streams,
        events_before,
        events,
        bytes,
    });
    check!(EventRecord { id, at_us, bytes, attempt, change });
    check!(StreamRecord { position, stream, topic, number, reserved });
    check!(HistoryRecord { versions, names, current, made });
    check!(VersionRecord { time_us, new_bytes, number, parent, attempt, label, pieces });
    check!(NameRecord { name, version, kind });
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
        policy,
        weight,
        refuse_permille,
        restarts_off,
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
        forgiven,
        state,
        marks,
        retention_ms,
        history,
        input,
        memo_of,
        memo_us,
    });
}

#[test]
fn tables_of_restored_states_are_their_layouts() {
    check!(RestoredStates { histories, versions, pieces, names, chunks, bytes });
    check!(RestoredHistory { id, history, reserved });
    check!(RestoredChunk { digest, bytes });
}

/// Compares the table under a heading with bytes: every field has its value, nothing is left out, reserved bytes are zero.
fn check_bytes(heading: &str, written: &[u8], values: &[(&str, u64)]) {
    let rows = table(heading);
    let mut values = values.iter();
    let mut end = 0;
    for (at, bytes, name) in rows {
        assert_eq!(at, end, "{name} of {heading}");
        end = at + bytes;
        let mut wide = [0u8; 8];
        wide[..bytes].copy_from_slice(&written[at..end]);
        let expected =
            if name == "reserved" { ("reserved", 0) } else { *values.next().expect("a value of each field") };
        assert_eq!((name.as_str(), u64::from_le_bytes(wide)), expected, "{heading}");
    }
    assert!(values.next().is_none(), "{heading} lacks a field");
    assert_eq!(end, written.len(), "{heading}");
}

const FIRST: u64 = 0x0807_0605_0403_0201;
const SECOND: u64 = 0x1817_1615_1413_1211;
const THIRD: u64 = 0x2827_2625_2423_2221;

fn members() -> ConfState {
    ConfState {
        voters: vec![1, 2, FIRST],
        voters_outgoing: vec![1, 3],
        learners: vec![4],
        learners_next: vec![SECOND],
        ..ConfState::default()
    }
}

#[test]
fn tables_of_commands_place_every_field() {
    let mut out = FrameBuffer::new();
    entry::append(&mut out, Verb::Operation(Operation::Complete), true, FIRST, |out| {
        out.extend_from_slice(b"body of a command");
    });
    let operation = u64::from(Operation::Complete.number());
    let values = [("operation", operation), ("flags", 1), ("body_len", 17), ("time_us", FIRST)];
    check_bytes("#### Command header: 16 bytes\n", &out[..entry::COMMAND_HEADER_BYTES], &values);
    assert_eq!(out.len(), 16 + 32, "bodies are padded to 16");
    let settings = Settings {
        retention_ms: 0x0403_0201,
        kept_max: 0x1413_1211,
        waiting_max: 0x2423_2221,
        waiting_kib_max: 0x3433_3231,
        checkpointed_kept_ms: 0x4443_4241,
        events_kib_max: 0x5453_5251,
    };
    let values = [
        ("retention_ms", 0x0403_0201),
        ("kept_max", 0x1413_1211),
        ("waiting_max", 0x2423_2221),
        ("waiting_kib_max", 0x3433_3231),
        ("checkpointed_kept_ms", 0x4443_4241),
        ("events_kib_max", 0x5453_5251),
    ];
    check_bytes("#### Settings: 24 bytes\n", &settings.bytes(), &values);
    out.clear();
    entry::append(&mut out, Verb::Settings, false, FIRST, |out| out.extend_from_slice(&settings.bytes()));
    let values = [("operation", 256), ("flags", 0), ("body_len", 24), ("time_us", FIRST)];
    check_bytes("#### Command header: 16 bytes\n", &out[..16], &values);
    out.clear();
    entry::append(&mut out, Verb::Checkpointed, false, FIRST, |out| {
        out.extend_from_slice(&entry::checkpointed_bytes(SECOND));
    });
    let values = [("operation", 257), ("flags", 0), ("body_len", 8), ("time_us", FIRST)];
    check_bytes("#### Command header: 16 bytes\n", &out[..16], &values);
}

#[test]
fn tables_of_records_place_every_field() {
    let entry = Entry { index: FIRST, term: SECOND, data: bytes::Bytes::from_static(b"data"), ..Entry::default() };
    let header = record::entry_header(0x3231, &entry, THIRD);
    let values =
        [("group", 0x3231), ("form", 0), ("data_len", 4), ("index", FIRST), ("term", SECOND), ("commit", THIRD)];
    check_bytes("#### ENTRY: 32 bytes, then data\n", &header, &values);
    let mut configuration = Vec::new();
    conf::encode(&members(), &mut configuration);
    let view = EntryView { group: 0x3231, is_configuration: true, index: 1, term: 2, commit: 3, data: &configuration };
    let header = record::entry_header(0x3231, &view.entry(record::aligned(&configuration)), 3);
    let values = [("group", 0x3231), ("form", 1), ("data_len", 64), ("index", 1), ("term", 2), ("commit", 3)];
    check_bytes("#### ENTRY: 32 bytes, then data\n", &header, &values);

    let hard = HardState { term: FIRST, vote: SECOND, commit: THIRD, ..HardState::default() };
    let values = [("group", 0x3231), ("term", FIRST), ("vote", SECOND), ("commit", THIRD)];
    check_bytes("#### HARD: 32 bytes\n", &record::hard(0x3231, &hard), &values);
    let last = Position { term: 0x0403_0201, index: THIRD };
    let removed = Removed { group: 0x3231, term: FIRST, vote: SECOND, last };
    let values =
        [("group", 0x3231), ("last_term", 0x0403_0201), ("term", FIRST), ("vote", SECOND), ("last_index", THIRD)];
    check_bytes("#### REMOVED: 32 bytes\n", &removed.record(), &values);
    assert_eq!(Removed::read(&removed.record()), Some(removed));

    let values = [("group", 0x3231), ("tag", 2), ("last", 1), ("number", 0x0403_0201), ("transfer", FIRST)];
    let header = record::chunk(0x3231, 2, 0x0403_0201, true, FIRST);
    check_bytes("#### CHUNK: 16 bytes, then the chunk\n", &header, &values);

    let at = Position { index: FIRST, term: SECOND };
    let (header, written) = record::install(0x3231, at, &members());
    let values = [("group", 0x3231), ("index", FIRST), ("term", SECOND)];
    check_bytes("#### INSTALL: 32 bytes, then the configuration\n", &header, &values);
    assert_eq!(written, configuration);
    let values = [("voters", 3), ("outgoing", 2), ("learners", 1), ("learners_next", 1)];
    check_bytes("#### Configuration: 8 bytes, then node ids\n", &configuration[..8], &values);
    let ids: Vec<u8> = [1, 2, FIRST, 1, 3, 4, SECOND].iter().flat_map(|id: &u64| id.to_le_bytes()).collect();
    assert_eq!(&configuration[8..], ids);
}

#[test]
fn table_of_a_head_places_every_field() {
    let head = Head {
        group: 0x3231,
        at: Position { index: FIRST, term: SECOND },
        hard: HardState { term: THIRD, vote: 5, commit: 6, ..HardState::default() },
        command_us: 7,
        earlier: Position { term: 0x0403_0201, index: 13 },
        settings: Settings {
            retention_ms: 8,
            kept_max: 9,
            waiting_max: 10,
            waiting_kib_max: 11,
            checkpointed_kept_ms: 12,
            events_kib_max: 13,
        },
        conf: members(),
    };
    let mut out = FrameBuffer::new();
    head.write(&mut out);
    let values = [
        ("group", 0x3231),
        ("earlier_term", 0x0403_0201),
        ("index", FIRST),
        ("term", SECOND),
        ("hard_term", THIRD),
        ("vote", 5),
        ("commit", 6),
        ("command_us", 7),
        ("earlier_index", 13),
        ("retention_ms", 8),
        ("kept_max", 9),
        ("waiting_max", 10),
        ("waiting_kib_max", 11),
        ("checkpointed_kept_ms", 12),
        ("events_kib_max", 13),
        ("configuration_len", 64),
    ];
    check_bytes("#### HEAD: 96 bytes, then the configuration\n", &out[..HEAD_BYTES], &values);
    assert_eq!(out.len(), HEAD_BYTES + 64);
}

/// Number and name from the table that begins with these columns.
fn numbers(column: &str) -> Vec<(u32, String)> {
    let start = PAGE.find(&format!("| {column} | name | bytes |\n")).unwrap();
    let lines = PAGE[start..].lines().skip(2).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells[1].parse().unwrap(), cells[2].to_owned())
    };
    lines.map(row).collect()
}

#[test]
fn kinds_and_tags_are_those_of_the_page() {
    let named =
        |pairs: &[(u32, &str)]| pairs.iter().map(|(number, name)| (*number, (*name).to_owned())).collect::<Vec<_>>();
    let kinds = [
        (kind::ENTRY, "ENTRY"),
        (kind::HARD, "HARD"),
        (kind::CHUNK, "CHUNK"),
        (kind::INSTALL, "INSTALL"),
        (kind::REMOVED, "REMOVED"),
    ];
    assert_eq!(numbers("kind"), named(&kinds));
    let tags = [
        (tag::HEAD, "HEAD"),
        (tag::ENTRIES, "ENTRIES"),
        (tag::MAP, "MAP"),
        (tag::REMOVED, "REMOVED"),
        (tag::STATE, "STATE"),
    ];
    assert_eq!(numbers("tag"), named(&tags));
}
