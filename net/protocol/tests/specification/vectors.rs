//! Golden frames: one file each, a description and the bytes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use taskmaster_protocol::frame::{self, Header, NO_PARTITION};
use taskmaster_protocol::{Code, FrameBuffer, Operation};

use crate::shape::{bodies, bodies_of, hex, shape, unhex};

/// Bytes of a frame per line of its file.
const LINE_BYTES: usize = 16;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// Every golden frame: its file and what is in it.
pub(crate) fn all() -> Vec<(PathBuf, Value)> {
    let files = fs::read_dir(directory()).expect("the vectors are here").map(|entry| entry.expect("readable").path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("readable");
        let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, value)
    };
    files.into_iter().map(read).collect()
}

pub(crate) fn operation(name: &str) -> Operation {
    let found = Operation::ALL.iter().find(|operation| format!("{operation:?}") == name);
    *found.unwrap_or_else(|| panic!("no operation is named {name}"))
}

fn header_of(value: &Value) -> Header {
    let number = |name: &str| value[name].as_u64().expect("a number");
    let name = value["code"].as_str().expect("a code");
    let code = Code::ALL.iter().find(|code| code.name() == name).unwrap_or_else(|| panic!("no code is named {name}"));
    Header {
        version: u8::try_from(number("version")).expect("a byte"),
        flags: u8::try_from(number("flags")).expect("a byte"),
        operation: operation(value["operation"].as_str().expect("a name")).number(),
        length: 0,
        correlation: number("correlation"),
        partition: value["partition"].as_u64().map_or(NO_PARTITION, |number| u16::try_from(number).expect("16 bits")),
        code: code.number(),
    }
}

/// The one body of a description: its name and content.
fn body_of(vector: &Value) -> (&str, &Value) {
    let body = vector["body"].as_object().expect("a body");
    assert_eq!(body.len(), 1, "a frame has one body");
    let (name, content) = body.iter().next().expect("one");
    (name, content)
}

fn encode(vector: &Value) -> FrameBuffer {
    let (name, content) = body_of(vector);
    let mut body = FrameBuffer::new();
    (shape(name).encode)(content, &mut body);
    let mut out = FrameBuffer::new();
    frame::encode_raw(&mut out, header_of(&vector["header"]), &body);
    out
}

pub(crate) fn bytes_of(vector: &Value) -> Vec<u8> {
    let lines = vector["frame"].as_array().expect("a frame");
    lines.iter().flat_map(|line| unhex(line.as_str().expect("digits"))).collect()
}

fn write(path: &Path, vector: &Value) {
    let frame = encode(vector);
    let (name, _) = body_of(vector);
    let (parsed, _) = frame::parse(&frame).expect("a frame").expect("a whole frame");
    let content = (shape(name).describe)(parsed.body).expect("the layout is right");
    let lines: Vec<String> = frame.chunks(LINE_BYTES).map(hex).collect();
    let mut whole = vector.clone();
    whole["body"] = json!({ name: content });
    whole["frame"] = json!(lines);
    fs::write(path, format!("{whole:#}\n")).expect("writable");
}

#[test]
fn golden_frames_are_encoded_byte_for_byte_and_read_back() {
    let may_write = std::env::var_os("TASKMASTER_WRITE_VECTORS").is_some();
    for (path, vector) in all() {
        let name = path.display();
        if vector.get("frame").is_none() && may_write {
            write(&path, &vector);
            continue;
        }
        let golden = bytes_of(&vector);
        assert_eq!(hex(&encode(&vector)), hex(&golden), "{name}: another encoding than the golden one");
        let mut aligned = FrameBuffer::new();
        aligned.extend_from_slice(&golden);
        let (frame, used) = frame::parse(&aligned).expect("a frame").expect("a whole frame");
        assert_eq!(used, golden.len(), "{name}");
        let header = Header { length: frame.header.length, ..header_of(&vector["header"]) };
        assert_eq!(frame.header, header, "{name}");
        let (body, content) = body_of(&vector);
        assert_eq!(&(shape(body).describe)(frame.body).expect("the layout is right"), content, "{name}");
    }
}

#[test]
fn every_operation_has_golden_frames_of_each_of_its_bodies() {
    let mut seen: BTreeSet<(String, bool, String)> = BTreeSet::new();
    for (path, vector) in all() {
        let header = header_of(&vector["header"]);
        let (body, _) = body_of(&vector);
        let name = vector["header"]["operation"].as_str().expect("a name");
        let possible = bodies_of(operation(name), header.is_response(), header.code);
        assert!(possible.contains(&body), "{}: {name} has the bodies {possible:?}", path.display());
        assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), vector["name"].as_str());
        seen.insert((name.to_owned(), header.is_response(), body.to_owned()));
    }
    for &operation in Operation::ALL {
        let (request, replies) = bodies(operation);
        let name = format!("{operation:?}");
        assert!(seen.contains(&(name.clone(), false, request.to_owned())), "no frame of {name}");
        for reply in replies {
            assert!(seen.contains(&(name.clone(), true, (*reply).to_owned())), "no {reply} of {name}");
        }
    }
}

#[test]
fn spans_of_golden_frames_lie_in_their_byte_areas() {
    for (path, vector) in all() {
        let (body, content) = body_of(&vector);
        let bytes = content.get("bytes").or_else(|| content.get("batch")?.get("bytes"));
        let area = match bytes.and_then(Value::as_str).map(|text| text.split_once(':').expect("tagged")) {
            Some(("text", text)) => text.len(),
            Some((_, digits)) => digits.len() / 2,
            None => 0,
        };
        let mut aligned = FrameBuffer::new();
        aligned.extend_from_slice(&bytes_of(&vector));
        let (frame, _) = frame::parse(&aligned).expect("a frame").expect("a whole frame");
        let inside = |span: &taskmaster_protocol::body::ArchivedSpan| {
            assert!(span.at.to_native() as usize + span.len.to_native() as usize <= area, "{}", path.display());
        };
        (shape(body).spans)(frame.body, &mut |span| inside(span)).expect("the layout is right");
    }
}
