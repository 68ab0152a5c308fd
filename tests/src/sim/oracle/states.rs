//! Saved states: an acknowledged version is there for every later read, with its parent and its bytes.

use std::collections::{BTreeMap, HashMap};

use taskmaster_protocol::body::{ArchivedSaveState, ArchivedStateHistory, ArchivedStatePage, ArchivedStateReply};
use taskmaster_protocol::state::Address;
use taskmaster_protocol::{Code, TaskId, access};

use super::{Oracle, Request, Row, Sent, Verdict, require};

/// A version as it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    parent: u32,
    digest: Address,
}

/// What is known of a task's states.
#[derive(Debug, Default)]
pub(super) struct States {
    acknowledged: BTreeMap<u32, Saved>,
    /// Saves received under a lease that was in force.
    valid: Vec<Saved>,
}

/// What had been acknowledged when a read, or which save, was received.
#[derive(Debug, Default)]
pub(super) enum Asked {
    #[default]
    Nothing,
    Save(Vec<Saved>),
    Log(BTreeMap<u32, Saved>),
    Bytes(u32, Option<Saved>),
}

impl Oracle {
    /// A state that a worker is about to save.
    pub(crate) fn register_state(&mut self, digest: Address, bytes: Vec<u8>) {
        self.states.insert(digest, bytes);
    }

    /// The newest version of a task that was acknowledged.
    pub(crate) fn newest_version(&self, id: TaskId) -> Option<u32> {
        self.tasks.get(&id)?.states.acknowledged.keys().next_back().copied()
    }

    pub(super) fn save_received(&mut self, life: u64, body: &[u8], request: &mut Request) {
        let body = access::<ArchivedSaveState>(body).expect("workers send whole bodies");
        let mut saves = Vec::new();
        for row in body.rows.iter() {
            let saved = Saved { parent: row.parent.to_native(), digest: row.digest };
            let row = self.lease_row(life, TaskId::from(&row.id), row.token.to_native(), false);
            if row.is_valid {
                self.tasks.get_mut(&row.id).expect("registered").states.valid.push(saved);
            }
            saves.push(saved);
            request.rows.push(row);
        }
        request.asked = Asked::Save(saves);
    }

    pub(super) fn state_asked(&self, id: TaskId, version: Option<u32>) -> Asked {
        let acknowledged = &self.tasks[&id].states.acknowledged;
        match version {
            None => Asked::Log(acknowledged.clone()),
            Some(version) => Asked::Bytes(version, acknowledged.get(&version).copied()),
        }
    }

    pub(super) fn states_answered(&mut self, request: &Request, sent: &Sent) -> Verdict {
        let code = Code::from_number(sent.header.code);
        match &request.asked {
            Asked::Save(saves) if code == Code::Ok => self.saved(&request.rows, saves, sent),
            Asked::Log(before) if code == Code::Ok => Self::log_answered(request.rows[0].id, before, sent),
            Asked::Bytes(version, before) => self.bytes_answered(request.rows[0].id, *version, *before, code, sent),
            _ => Ok(()),
        }
    }

    fn saved(&mut self, rows: &[Row], saves: &[Saved], sent: &Sent) -> Verdict {
        let reply =
            access::<ArchivedStateReply>(&sent.body).map_err(|error| format!("a reply does not read: {error}"))?;
        require(reply.versions.len() == rows.len(), || "a save has another number of answers".to_owned())?;
        for ((row, saved), version) in rows.iter().zip(saves).zip(reply.versions.iter()) {
            let version = version.to_native();
            if version == 0 {
                continue;
            }
            self.saves_acknowledged += 1;
            let (id, states) = (row.id, &mut self.tasks.get_mut(&row.id).expect("registered").states);
            require(states.valid.contains(saved), || format!("{id} saved version {version} without a lease"))?;
            require(saved.parent < version, || format!("version {version} of {id} follows {}", saved.parent))?;
            let before = states.acknowledged.insert(version, *saved);
            require(before.is_none_or(|before| before == *saved), || {
                format!("version {version} of {id} was acknowledged as {before:?} and as {saved:?}")
            })?;
            let twice = states.acknowledged.iter().find(|(number, other)| **number != version && *other == saved);
            require(twice.is_none(), || format!("{id} has one save as versions {version} and {twice:?}"))?;
        }
        Ok(())
    }

    fn log_answered(id: TaskId, before: &BTreeMap<u32, Saved>, sent: &Sent) -> Verdict {
        let page =
            access::<ArchivedStateHistory>(&sent.body).map_err(|error| format!("a history does not read: {error}"))?;
        let found: HashMap<u32, Saved> = page
            .versions
            .iter()
            .map(|row| (row.number.to_native(), Saved { parent: row.parent.to_native(), digest: row.digest }))
            .collect();
        for (version, saved) in before {
            let there = found.get(version);
            require(there == Some(saved), || {
                format!("version {version} of {id} was acknowledged as {saved:?} and is {there:?}")
            })?;
        }
        Ok(())
    }

    fn bytes_answered(&mut self, id: TaskId, version: u32, before: Option<Saved>, code: Code, sent: &Sent) -> Verdict {
        let may_be_unknown = self.tasks[&id].contract.may_be_forgotten;
        if code == Code::UnknownTask || code == Code::UnknownVersion {
            return require(before.is_none() || may_be_unknown, || format!("version {version} of {id} is lost"));
        }
        if code != Code::Ok {
            return Ok(());
        }
        let page = access::<ArchivedStatePage>(&sent.body).map_err(|error| format!("a page does not read: {error}"))?;
        self.states_read += 1;
        let digest = page.version.digest;
        if let Some(before) = before {
            require(before.digest == digest, || format!("version {version} of {id} has another digest"))?;
        }
        let bytes = self.states.get(&digest);
        require(bytes.is_some_and(|bytes| bytes.as_slice() == page.bytes.as_slice()), || {
            format!("version {version} of {id} has bytes that nobody saved")
        })
    }
}
