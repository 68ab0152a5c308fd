//! `docs/formats/protocol.md` against the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use taskmaster_protocol::body::{chance_basis, cluster_verb, queue_field, state_verb};
use taskmaster_protocol::frame::{FLAG_RESEND, FLAG_RESPONSE, HEADER_BYTES, Header, MAGIC, NO_PARTITION};
use taskmaster_protocol::{Code, FrameBuffer, Operation, TaskId, frame, limits};

use crate::shape::{Field, Layout, bodies, layouts};
use crate::vectors;

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats/protocol.md");
    fs::read_to_string(path).expect("the specification is here")
}

/// The rows, without their heading, of the table that follows the line `after`.
fn table(document: &str, after: &str) -> Vec<Vec<String>> {
    let start = document.find(&format!("{after}\n")).unwrap_or_else(|| panic!("the page has no line \"{after}\""));
    let lines = document[start + after.len() + 1..].lines();
    let rows = lines.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| {
        let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
        inner.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("\"{text}\" is not a number"))
}

/// Every record in the page: what its heading and its table say.
fn records(document: &str) -> Vec<Layout> {
    let mut found = Vec::new();
    for line in document.lines().filter(|line| line.starts_with("#### `") && line.contains("alignment")) {
        let (name, sizes) = line["#### `".len()..].split_once("`: ").expect("a heading of a record");
        let (bytes, alignment) = sizes.split_once(" bytes, alignment ").expect("a heading of a record");
        let fields = table(document, line).into_iter().map(|row| Field {
            at: number(&row[0]),
            bytes: number(&row[1]),
            name: row[2].clone(),
            type_name: row[3].clone(),
        });
        let fields = fields.collect();
        found.push(Layout { name: name.to_owned(), bytes: number(bytes), alignment: number(alignment), fields });
    }
    found
}

#[test]
fn record_tables_are_the_layouts_of_the_types() {
    let mut written: BTreeMap<String, Layout> = BTreeMap::new();
    for record in records(&document()) {
        let name = record.name.clone();
        assert!(written.insert(name.clone(), record).is_none(), "{name} has two tables");
    }
    for layout in layouts() {
        let name = layout.name.clone();
        assert_eq!(written.remove(&name).as_ref(), Some(&layout), "the table of {name} is wrong or missing");
    }
    assert!(written.is_empty(), "tables of what does not exist: {:?}", written.keys());
}

#[test]
fn operation_table_is_complete() {
    let document = document();
    let rows = table(&document, "## Operations");
    assert_eq!(rows.len(), Operation::ALL.len());
    for (row, &operation) in rows.iter().zip(Operation::ALL) {
        let (request, replies) = bodies(operation);
        assert_eq!(row[0], operation.number().to_string());
        assert_eq!(row[1], format!("{operation:?}"));
        assert_eq!(row[3], request);
        assert_eq!(row[4], replies.join(", "));
    }
}

#[test]
fn code_table_is_complete() {
    let rows = table(&document(), "## Codes");
    let written: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let known: Vec<_> = Code::ALL.iter().map(|code| (code.number().to_string(), code.name().to_owned())).collect();
    assert_eq!(written, known);
}

#[test]
fn limit_table_is_complete() {
    let wide = |limit: usize| u64::try_from(limit).expect("64 bits");
    let known = [
        ("body_bytes", wide(limits::BODY_BYTES_MAX)),
        ("rows", wide(limits::ROWS_MAX)),
        ("specs", wide(limits::SPECS_MAX)),
        ("payload_bytes", wide(limits::PAYLOAD_BYTES_MAX)),
        ("result_bytes", wide(limits::RESULT_BYTES_MAX)),
        ("name_bytes", wide(limits::NAME_BYTES_MAX)),
        ("key_bytes", wide(limits::KEY_BYTES_MAX)),
        ("error_bytes", wide(limits::ERROR_BYTES_MAX)),
        ("log_tail_bytes", wide(limits::LOG_TAIL_BYTES_MAX)),
        ("attempts", limits::ATTEMPTS_MAX.into()),
        ("lease_ms_min", limits::LEASE_MS_MIN.into()),
        ("lease_ms_max", limits::LEASE_MS_MAX.into()),
        ("subscriptions", wide(limits::SUBSCRIPTIONS_MAX)),
        ("credit", limits::CREDIT_MAX.into()),
        ("partitions", limits::PARTITIONS_MAX.into()),
        ("state_bytes", wide(limits::STATE_BYTES_MAX)),
        ("state_chunk_bytes", wide(limits::STATE_CHUNK_BYTES_MAX)),
        ("state_chunks", wide(limits::STATE_CHUNKS_MAX)),
        ("state_versions", wide(limits::STATE_VERSIONS_MAX)),
        ("state_references", wide(limits::STATE_REFERENCES_MAX)),
        ("state_branches", wide(limits::STATE_BRANCHES_MAX)),
        ("state_tags", wide(limits::STATE_TAGS_MAX)),
        ("state_page_bytes", wide(limits::STATE_PAGE_BYTES_MAX)),
        ("label_bytes", wide(limits::LABEL_BYTES_MAX)),
        ("alternatives", wide(limits::ALTERNATIVES_MAX)),
        ("weight", limits::WEIGHT_MAX.into()),
        ("topic_bytes", wide(limits::TOPIC_BYTES_MAX)),
        ("streams", wide(limits::STREAMS_MAX)),
        ("horizon_ms", limits::HORIZON_MS_MAX),
    ];
    let rows = table(&document(), "## Limits");
    let written: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(written, known.map(|(name, value)| (name.to_owned(), value.to_string())));
}

#[test]
fn queue_field_bits_are_the_ones_in_the_page() {
    let rows = table(&document(), "#### Bits of `ConfigureQueue.set`");
    let bits: Vec<u32> = rows.iter().map(|row| row[0].parse().expect("a bit")).collect();
    let known = [
        queue_field::PAUSED,
        queue_field::DRAINING,
        queue_field::RATE,
        queue_field::CONCURRENCY,
        queue_field::DEADLINE_ACTION,
        queue_field::RETENTION,
        queue_field::DEPTH,
        queue_field::POLICY,
        queue_field::REFUSAL,
        queue_field::RESTARTS,
        queue_field::WEIGHT,
    ];
    assert_eq!(bits, known);
}

#[test]
fn cluster_verbs_are_the_ones_in_the_page() {
    let rows = table(&document(), "#### Values of `ClusterAdmin.verb`");
    let written: Vec<(u32, String)> =
        rows.iter().map(|row| (row[0].parse().expect("a number"), row[1].clone())).collect();
    let known = [
        (cluster_verb::BOOTSTRAP, "bootstrap"),
        (cluster_verb::DRAIN, "drain"),
        (cluster_verb::ACTIVATE, "activate"),
        (cluster_verb::REMOVE, "remove"),
        (cluster_verb::MOVE, "move"),
        (cluster_verb::REBALANCE, "rebalance"),
        (cluster_verb::TRANSFER_LEADER, "transfer_leader"),
        (cluster_verb::REPLICATION, "replication"),
        (cluster_verb::JOIN, "join"),
    ];
    assert_eq!(written, known.map(|(verb, name)| (verb, name.to_owned())));
}

#[test]
fn bases_of_chances_are_the_ones_in_the_page() {
    let rows = table(&document(), "#### Values of `Chance.basis`");
    let written: Vec<(u32, String)> =
        rows.iter().map(|row| (row[0].parse().expect("a number"), row[1].clone())).collect();
    let known = [
        (chance_basis::KNOWN, "known"),
        (chance_basis::NO_DEADLINE, "no_deadline"),
        (chance_basis::TOO_FEW_SAMPLES, "too_few_samples"),
        (chance_basis::NOT_SERVED, "not_served"),
        (chance_basis::NOT_IN_LINE, "not_in_line"),
    ];
    assert_eq!(written, known.map(|(basis, name)| (basis, name.to_owned())));
}

#[test]
fn state_verbs_are_the_ones_in_the_page() {
    let rows = table(&document(), "#### Values of `ChangeState.verb`");
    let written: Vec<(u32, String)> =
        rows.iter().map(|row| (row[0].parse().expect("a number"), row[1].clone())).collect();
    let known = [
        (state_verb::BRANCH, "branch"),
        (state_verb::SWITCH, "switch"),
        (state_verb::DELETE_BRANCH, "delete_branch"),
        (state_verb::ROLLBACK, "rollback"),
        (state_verb::TAG, "tag"),
        (state_verb::UNTAG, "untag"),
        (state_verb::PRUNE, "prune"),
        (state_verb::RESUME, "resume"),
        (state_verb::FORK, "fork"),
    ];
    assert_eq!(written, known.map(|(verb, name)| (verb, name.to_owned())));
}

/// Encodes a header whose fields are all different, and finds each one where the page says.
#[test]
fn header_table_places_every_field() {
    let document = document();
    let header = Header {
        version: 0x11,
        flags: FLAG_RESPONSE | FLAG_RESEND,
        operation: 0x2221,
        length: 0,
        correlation: 0x3837_3635_3433_3231,
        partition: 0x4241,
        code: 0x5251,
    };
    let mut frame = FrameBuffer::new();
    frame::encode_raw(&mut frame, header, b"body");
    let mut at = 0;
    for row in table(&document, "#### Frame header: 32 bytes") {
        let (offset, bytes) = (number(&row[0]), number(&row[1]));
        assert_eq!(offset, at, "fields follow one another");
        at += bytes;
        let mut wide = [0u8; 8];
        wide[..bytes].copy_from_slice(&frame[offset..at]);
        let expected = match row[2].as_str() {
            "magic" => MAGIC.into(),
            "version" => header.version.into(),
            "flags" => 3,
            "operation" => header.operation.into(),
            "length" => 4,
            "checksum" => {
                let mut covered = frame[..HEADER_BYTES + 4].to_vec();
                covered[offset..at].fill(0);
                crc32c::crc32c(&covered).into()
            }
            "correlation" => header.correlation,
            "partition" => header.partition.into(),
            "code" => header.code.into(),
            "reserved" => 0,
            other => panic!("the header has no field {other}"),
        };
        assert_eq!(u64::from_le_bytes(wide), expected, "{}", row[2]);
    }
    assert_eq!((at, frame.len()), (HEADER_BYTES, HEADER_BYTES + 16));
    assert_eq!((NO_PARTITION, crc32c::crc32c(b"123456789")), (0xFFFF, 0xE306_9283));
}

#[test]
fn worked_example_is_the_golden_frame_it_names() {
    let document = document();
    let example = &document[document.find("## A worked example").expect("an example")..];
    let name = example.split("vectors/").nth(1).and_then(|rest| rest.split(".json").next()).expect("a name");
    let dump: Vec<String> = example
        .lines()
        .skip_while(|line| !line.starts_with("```"))
        .skip(1)
        .take_while(|line| !line.starts_with("```"))
        .map(|line| line.split_once("  ").expect("an offset").1.replace(' ', ""))
        .collect();
    let (_, vector) = vectors::all().into_iter().find(|(_, vector)| vector["name"] == name).expect("the vector");
    assert_eq!(crate::shape::unhex(&dump.concat()), vectors::bytes_of(&vector));
    let id: TaskId = vector["body"]["Submit"]["tasks"][0]["id"].as_str().expect("an id").parse().expect("an id");
    assert!(example.contains(&id.to_string()) && example.contains(&format!("{:#018x}", id.hi)));
}

#[test]
fn routing_example_is_right() {
    let document = document();
    let hash = crc32c::crc32c(b"default\0mail\0u\0invoice-17");
    let example = format!("CRC-32C 0x{hash:08X}, partition {} of 64", hash % 64);
    assert!(document.contains(&example), "the page should say \"{example}\"");
}
