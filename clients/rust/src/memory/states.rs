//! The in-memory server's versions of tasks' state. Whole states are kept; pruning and forks are a node's business.

use std::collections::BTreeMap;

use taskmaster_protocol::body::{
    ArchivedChangeState, ArchivedSaveRow, ArchivedSaveState, ExceptionRow, StateHistory, StatePage, StateReply,
    VersionName, VersionRow, put, slice, state_verb, text,
};
use taskmaster_protocol::state::{address_of, digest_of};
use taskmaster_protocol::{Code, TaskId};

use super::engine::Engine;
use crate::error::{Error, Refusal};

#[derive(Clone, Debug)]
struct Saved {
    row: VersionRow,
    label: String,
    chunks: Vec<Vec<u8>>,
}

/// The versions of one task, each at the place of its number less one.
#[derive(Clone, Debug)]
pub(super) struct History {
    versions: Vec<Saved>,
    branches: BTreeMap<String, u32>,
    tags: BTreeMap<String, u32>,
    current: String,
}

impl Default for History {
    fn default() -> Self {
        let main = "main".to_owned();
        let branches = BTreeMap::from([(main.clone(), 0)]);
        Self { versions: Vec::new(), branches, tags: BTreeMap::new(), current: main }
    }
}

impl History {
    fn get(&self, number: u32) -> Option<&Saved> {
        self.versions.get(number.checked_sub(1)? as usize)
    }

    fn head(&self) -> u32 {
        self.branches.get(&self.current).copied().unwrap_or(0)
    }
}

fn unknown(id: TaskId) -> Error {
    Refusal::local(Code::UnknownVersion, format!("task {id} has no such version, branch or tag")).into()
}

impl Engine {
    /// The version from which a task's next attempt resumes.
    pub(super) fn head_of(&self, id: TaskId) -> u32 {
        self.states.get(&id).map_or(0, History::head)
    }

    pub(super) fn save_states(&mut self, body: &ArchivedSaveState) -> Result<StateReply, Error> {
        let mut reply = StateReply::default();
        for (row, index) in body.rows.iter().zip(0u32..) {
            let id = TaskId::from(&row.id);
            let saved = match self.check_lease(id, row.token.to_native()) {
                Ok(()) => self.save_state(body, row)?,
                Err(code) => Err(code),
            };
            reply.versions.push(saved.unwrap_or(0));
            if let Err(code) = saved {
                reply.exceptions.push(ExceptionRow { id, index, code: code.number(), state: 0, reserved: 0 });
            }
        }
        Ok(reply)
    }

    fn save_state(&mut self, body: &ArchivedSaveState, row: &ArchivedSaveRow) -> Result<Result<u32, Code>, Error> {
        let time_us = self.now_us();
        let history = self.states.entry(TaskId::from(&row.id)).or_default();
        let parent = row.parent.to_native();
        let (at, len) = (row.segments.at.to_native() as usize, row.segments.len.to_native() as usize);
        let segments = body.segments.get(at..).and_then(|rest| rest.get(..len));
        let segments = segments.ok_or_else(|| Error::Protocol("segments outside those given".to_owned()))?;
        let mut chunks = Vec::new();
        for segment in segments {
            let (from, count) = (segment.from.to_native() as usize, segment.count.to_native() as usize);
            if count == 0 {
                chunks.push(slice(&body.bytes, segment.data)?.to_vec());
                continue;
            }
            let run = history.get(parent).and_then(|parent| parent.chunks.get(from..)?.get(..count));
            let Some(run) = run else { return Ok(Err(Code::UnknownVersion)) };
            chunks.extend_from_slice(run);
        }
        let addresses: Vec<_> = chunks.iter().map(|chunk| address_of(chunk)).collect();
        if digest_of(&addresses) != row.digest {
            return Ok(Err(Code::DigestMismatch));
        }
        let is_it = |saved: &&Saved| saved.row.parent == parent && saved.row.digest == row.digest;
        if let Some(saved) = history.versions.iter().find(is_it) {
            return Ok(Ok(saved.row.number));
        }
        let number = u32::try_from(history.versions.len() + 1).expect("tests save fewer");
        let size = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let label = text(&body.bytes, row.label)?.to_owned();
        let row = VersionRow {
            digest: row.digest,
            time_us,
            size,
            new_bytes: size,
            number,
            parent,
            attempt: row.attempt.to_native(),
            chunks: u32::try_from(chunks.len()).expect("states are bounded"),
            ..VersionRow::default()
        };
        history.versions.push(Saved { row, label, chunks });
        if history.head() == parent {
            history.branches.insert(history.current.clone(), number);
        }
        Ok(Ok(number))
    }

    pub(super) fn state_history(&self, id: TaskId) -> StateHistory {
        let mut page = StateHistory::default();
        let Some(history) = self.states.get(&id) else { return page };
        for saved in &history.versions {
            let label = put(&mut page.bytes, saved.label.as_bytes());
            page.versions.push(VersionRow { label, ..saved.row });
        }
        for (names, kind) in [(&history.branches, 0), (&history.tags, 1)] {
            for (name, &version) in names {
                page.names.push(VersionName { name: put(&mut page.bytes, name.as_bytes()), version, kind });
            }
        }
        page.current = put(&mut page.bytes, history.current.as_bytes());
        page.head = history.head();
        page.made = u32::try_from(history.versions.len()).expect("tests save fewer");
        page
    }

    pub(super) fn state_page(&self, id: TaskId, version: u32, from: u32) -> Result<StatePage, Error> {
        let history = self.states.get(&id).ok_or_else(|| unknown(id))?;
        let number = if version == 0 { history.head() } else { version };
        let saved = history.get(number).ok_or_else(|| unknown(id))?;
        let mut page = StatePage { version: saved.row, from, ..StatePage::default() };
        for chunk in saved.chunks.iter().skip(from as usize) {
            page.lengths.push(u32::try_from(chunk.len()).expect("chunks are bounded"));
            page.bytes.extend_from_slice(chunk);
        }
        Ok(page)
    }

    pub(super) fn change_state(&mut self, body: &ArchivedChangeState) -> Result<StateReply, Error> {
        let id = TaskId::from(&body.id);
        let name = text(&body.bytes, body.name)?.to_owned();
        let history = self.states.get_mut(&id).ok_or_else(|| unknown(id))?;
        let version = match body.version.to_native() {
            0 => history.head(),
            version => version,
        };
        let is_there = history.get(version).is_some();
        let done = match body.verb.to_native() {
            state_verb::BRANCH if is_there => history.branches.insert(name, version).is_none(),
            state_verb::TAG if is_there => history.tags.insert(name, version).is_none() || is_there,
            state_verb::ROLLBACK if is_there => history.branches.insert(history.current.clone(), version).is_some(),
            state_verb::SWITCH if history.branches.contains_key(&name) => {
                history.current = name;
                true
            }
            state_verb::DELETE_BRANCH if name != history.current => history.branches.remove(&name).is_some(),
            state_verb::UNTAG => history.tags.remove(&name).is_some(),
            state_verb::PRUNE | state_verb::RESUME | state_verb::FORK => {
                let message = "the in-memory server neither prunes nor forks: use a node";
                return Err(Refusal::local(Code::UnknownOperation, message).into());
            }
            _ => false,
        };
        if done { Ok(StateReply { versions: vec![version], ..StateReply::default() }) } else { Err(unknown(id)) }
    }
}
