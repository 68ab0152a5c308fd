//! The versions of a task's state, and their bytes.

use taskmaster_protocol::body::{self, ArchivedReadState, StateHistory, StatePage, VersionName, VersionRow};
use taskmaster_protocol::{Code, TaskId, limits};

use crate::arena::Arena;
use crate::command::change_state::no_version;
use crate::partition::Partition;
use crate::refused::Refused;
use crate::task::Slot;
use crate::versions::Version;

/// All versions that are kept, with branches and tags.
pub(crate) fn history(partition: &Partition, slot: Slot) -> StateHistory {
    let mut page = StateHistory::default();
    let Some(history) = partition.history(slot) else { return page };
    page.versions =
        history.versions.iter().map(|(&number, version)| describe(number, version, &mut page.bytes)).collect();
    for (names, kind) in [(&history.branches, 0), (&history.tags, 1)] {
        for (name, &version) in names {
            page.names.push(VersionName { name: body::put(&mut page.bytes, name.as_bytes()), version, kind });
        }
    }
    page.current = body::put(&mut page.bytes, history.current.as_bytes());
    (page.head, page.made) = (history.head(), history.made);
    page
}

fn describe(number: u32, version: &Version, bytes: &mut Vec<u8>) -> VersionRow {
    VersionRow {
        digest: version.digest,
        time_us: version.time_us,
        size: version.size,
        new_bytes: version.new_bytes,
        number,
        parent: version.parent,
        attempt: version.attempt,
        chunks: u32::try_from(version.chunks.len()).expect("chunks are bounded"),
        label: body::put(bytes, version.label.as_bytes()),
    }
}

/// Chunks of one version, as many as fit an answer.
pub(crate) fn read(
    partition: &Partition,
    slot: Slot,
    body: &ArchivedReadState,
    arena: &Arena,
) -> Result<StatePage, Refused> {
    let id = TaskId::from(&body.id);
    let Some(history) = partition.history(slot) else {
        return Err(Refused::new(Code::UnknownVersion, format!("task {id} has saved no state")));
    };
    let number = match body.version.to_native() {
        0 => history.head(),
        number => number,
    };
    let unknown = || Refused::new(Code::UnknownVersion, no_version(id, number, history));
    let version = history.versions.get(&number).ok_or_else(unknown)?;
    let from = body.from.to_native();
    let mut page = StatePage { from, ..StatePage::default() };
    for &chunk in version.chunks.get(from as usize..).unwrap_or_default() {
        let len = partition.versions.chunks.len_of(chunk);
        if page.bytes.len() + len as usize > limits::STATE_PAGE_BYTES_MAX {
            break;
        }
        page.lengths.push(len);
        page.bytes.extend_from_slice(partition.versions.chunks.bytes(chunk, arena));
    }
    // The label is left out: here the byte area is the state's.
    page.version = VersionRow { label: body::Span::default(), ..describe(number, version, &mut Vec::new()) };
    Ok(page)
}
