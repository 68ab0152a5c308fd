//! Peer frames: what one side writes the other reads, and hostile bytes give an error.

use proptest::prelude::*;
use taskmaster_protocol::NodeId;
use taskmaster_protocol::peer::{self, Kind, PeerError, PeerHello, PeerRefusal, Reason};

fn hello() -> PeerHello {
    PeerHello {
        peer_version_min: 1,
        peer_version_max: 2,
        version: 7,
        cluster: u128::MAX - 5,
        node: NodeId(u64::MAX - 1),
        to_node: NodeId(3),
        shard: 4,
        to_shard: 65_535,
        cluster_name: "größe".to_owned(),
        node_name: "n1".to_owned(),
    }
}

#[test]
fn the_bytes_of_a_hello_are_those_of_the_format_page() {
    let body = PeerHello {
        peer_version_min: 1,
        peer_version_max: 1,
        version: 1,
        cluster: 0x0102,
        node: NodeId(0x11),
        to_node: NodeId(0x22),
        shard: 1,
        to_shard: 2,
        cluster_name: "c".to_owned(),
        node_name: "n1".to_owned(),
    }
    .encode();
    let mut out = Vec::new();
    peer::encode(&mut out, Kind::Hello, 1, 0, &body);
    let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = "544d503101010000\
                    33000000CHECKSUM\
                    00000000000000000000000000000000\
                    0101000001000000\
                    02010000000000000000000000000000\
                    1100000000000000\
                    2200000000000000\
                    0100020001000200\
                    636e31"
        .to_owned()
        + &"00".repeat(13);
    assert_eq!(hex.replace(&hex[24..32], "CHECKSUM"), expected);
    assert_eq!(out.len(), peer::stream_bytes(51));
}

#[test]
fn a_frame_is_read_only_when_it_is_whole() {
    let mut out = Vec::new();
    peer::encode(&mut out, Kind::Batch, 1, 9, b"0123456789");
    for end in 0..out.len() {
        assert!(peer::parse(&out[..end]).unwrap().is_none());
        assert!(peer::needed(&out[..end]).unwrap() <= out.len());
    }
    let (frame, used) = peer::parse(&out).unwrap().unwrap();
    assert_eq!((frame.kind, frame.version, frame.sequence, frame.body), (Kind::Batch, 1, 9, &b"0123456789"[..]));
    assert_eq!(used, 48);
}

#[test]
fn strangers_are_told_apart() {
    assert_eq!(peer::needed(b"TMK1").unwrap_err(), PeerError::Client);
    assert_eq!(peer::needed(&[0x16, 3, 1, 0]).unwrap_err(), PeerError::Tls);
    let error = peer::needed(b"GET / HTTP/1.1").unwrap_err();
    assert_eq!(error.to_string(), "expected a peer's frame, which starts with \"TMP1\", but found \"GET \"");
}

#[test]
fn only_batches_may_be_large() {
    let mut out = Vec::new();
    peer::encode(&mut out, Kind::Batch, 1, 0, &[]);
    out[8..12].copy_from_slice(&(32u32 << 20).to_le_bytes());
    assert_eq!(peer::needed(&out).unwrap(), 32 + (32 << 20));
    out[8..12].copy_from_slice(&((32u32 << 20) + 1).to_le_bytes());
    assert!(matches!(peer::needed(&out), Err(PeerError::TooLarge { .. })));
    out[5] = Kind::Hello as u8;
    out[8..12].copy_from_slice(&2_049u32.to_le_bytes());
    assert_eq!(peer::needed(&out).unwrap_err(), PeerError::TooLarge { length: 2_049, limit: 2_048 });
}

#[test]
fn greetings_are_read_back() {
    assert_eq!(PeerHello::decode(&hello().encode()).unwrap(), hello());
    let refusal = PeerRefusal { reason: Reason::Version, node: NodeId(5), sentence: "two\nlines".to_owned() };
    let read = PeerRefusal::decode(&refusal.encode()).unwrap();
    assert_eq!((read.reason, read.node, read.sentence.as_str()), (Reason::Version, NodeId(5), "two lines"));
    let long = PeerRefusal { sentence: "ä".repeat(2_000), ..refusal };
    assert_eq!(PeerRefusal::decode(&long.encode()).unwrap().sentence, "ä".repeat(512));
}

#[test]
fn a_hello_names_printable_parties_that_exist() {
    for hello in [
        PeerHello { node: NodeId(0), ..hello() },
        PeerHello { to_node: NodeId(0), ..hello() },
        PeerHello { node_name: "a\u{1b}[31m".to_owned(), ..hello() },
        PeerHello { peer_version_min: 3, ..hello() },
    ] {
        assert_eq!(PeerHello::decode(&hello.encode()).unwrap_err(), PeerError::Body("hello"));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..256), magic in any::<bool>()) {
        let _ = PeerHello::decode(&bytes);
        let _ = PeerRefusal::decode(&bytes);
        if magic && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&peer::MAGIC);
        }
        let _ = peer::parse(&bytes);
        if let Ok(needed) = peer::needed(&bytes) {
            prop_assert!(needed <= peer::stream_bytes(peer::PEER_BODY_BYTES_MAX));
        }
    }

    #[test]
    fn a_flipped_bit_outside_the_padding_is_noticed(body in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut out = Vec::new();
        peer::encode(&mut out, Kind::Batch, 1, 77, &body);
        let at = at.index(peer::HEADER_BYTES + body.len());
        out[at] ^= 1 << bit;
        prop_assert!(!matches!(peer::parse(&out), Ok(Some(_))));
    }

    #[test]
    fn a_damaged_hello_is_an_error_or_another_hello(at in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>()) {
        let mut bytes = hello().encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = PeerHello::decode(&bytes[..end.index(bytes.len() + 1)]);
    }
}
