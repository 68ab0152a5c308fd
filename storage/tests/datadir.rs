//! The data directory refuses what it should, in sentences, and survives what it should.

use std::path::Path;

use taskmaster_storage::datadir::{DataDir, Error, Meta};

fn meta() -> Meta {
    Meta { id: 0x0123_4567_89ab_cdef_0011_2233_4455_6677, shards: 2, partitions: 64 }
}

fn open(dir: &Path) -> Result<DataDir, Error> {
    DataDir::open_or_create(dir, &meta())
}

#[test]
fn a_new_directory_is_made_with_its_parents_and_opens_again_with_the_same_id() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("a/b");
    let first = open(&root).unwrap();
    assert!(first.was_created());
    assert!(first.wal_dir(0).is_dir() && first.wal_dir(1).is_dir());
    let identity = first.identity(1);
    assert_ne!(identity, first.identity(0));
    drop(first);
    let again = DataDir::open_or_create(&root, &Meta { id: 1, ..meta() }).unwrap();
    assert!(!again.was_created());
    assert_eq!((again.meta(), again.identity(1)), (&meta(), identity));
    assert_eq!(DataDir::peek(&root).unwrap(), Some(meta()));
    let room = again.room().unwrap();
    assert!(room.free > 0 && room.free <= room.bytes, "{room:?}");
}

#[test]
fn a_directory_in_use_is_refused_and_names_the_process() {
    let temp = tempfile::tempdir().unwrap();
    let held = open(temp.path()).unwrap();
    let error = open(temp.path()).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(held);
    open(temp.path()).unwrap();
}

#[test]
fn a_directory_with_other_files_is_refused_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("thesis.tex"), "x").unwrap();
    let error = open(temp.path()).unwrap_err();
    assert!(matches!(&error, Error::NotOurs { entry, .. } if entry == "thesis.tex"), "{error}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn a_creation_that_was_interrupted_is_taken_up_again() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("lock"), "").unwrap();
    std::fs::write(temp.path().join("meta.toml.unfinished"), "form").unwrap();
    assert!(open(temp.path()).unwrap().was_created());
}

#[test]
fn a_newer_format_is_refused_whatever_else_it_holds() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("meta.toml"), "format = 2\nregions = 7\n").unwrap();
    let error = open(temp.path()).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, .. }), "{error}");
}

#[test]
fn an_edited_description_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()).unwrap());
    let path = temp.path().join("meta.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    for edited in [text.replace("shards = 2", "shards = 3"), text.replace("id =", "name ="), "x".to_owned()] {
        std::fs::write(&path, edited).unwrap();
        let error = open(temp.path()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}

#[test]
fn other_shards_or_partitions_than_it_was_made_for_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()).unwrap());
    let error = DataDir::open_or_create(temp.path(), &Meta { shards: 4, ..meta() }).unwrap_err();
    assert!(matches!(error, Error::Differs { what: "shards", found: 2, wanted: 4, .. }), "{error}");
    let error = DataDir::open_or_create(temp.path(), &Meta { partitions: 128, ..meta() }).unwrap_err();
    assert!(matches!(error, Error::Differs { what: "partitions", .. }), "{error}");
}

#[test]
fn terms_grow_with_each_start_and_never_fall_behind_the_log() {
    let temp = tempfile::tempdir().unwrap();
    let dir = open(temp.path()).unwrap();
    assert_eq!(dir.next_term(0, 0).unwrap(), 1);
    assert_eq!(dir.next_term(0, 1).unwrap(), 2);
    assert_eq!(dir.next_term(1, 0).unwrap(), 1);
    std::fs::remove_file(dir.shard_dir(0).join("term")).unwrap();
    assert_eq!(dir.next_term(0, 9).unwrap(), 10);
    std::fs::write(dir.shard_dir(0).join("term"), "taskmaster-term-1 12 00000000\n").unwrap();
    assert!(matches!(dir.next_term(0, 9).unwrap_err(), Error::Damaged { .. }));
}
