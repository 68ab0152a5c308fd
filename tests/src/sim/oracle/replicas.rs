//! Replicas: one leader a term, one entry an index, one state an applied index.

use std::collections::{BTreeMap, HashMap};

use taskmaster_engine::record;

use crate::sim::dice::mix;

use super::{Oracle, Verdict, require, term_of};

/// What is known of groups.
#[derive(Default)]
pub(crate) struct Replicas {
    /// Which process led a group in a term.
    leaders: BTreeMap<(u16, u64), u64>,
    /// In which term a process leads a group, as last looked at.
    leads: BTreeMap<(u16, u64), u64>,
    /// The state behind an applied index.
    states: BTreeMap<(u16, u64), u64>,
    /// The entry at an index of a term.
    entries: HashMap<(u16, u64, u64), u64>,
    compared: u64,
}

impl Oracle {
    /// A record goes into a shard's log.
    pub(crate) fn logged(&mut self, kind: u32, parts: &[&[u8]]) -> Verdict {
        let header = parts.first().and_then(|header| header.first_chunk::<{ record::ENTRY_HEADER_BYTES }>());
        let Some(header) = header.filter(|_| kind == record::kind::ENTRY) else { return Ok(()) };
        let eight = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        let (group, index, term) = (u16::from_le_bytes([header[0], header[1]]), eight(8), eight(16));
        let data = parts[1..].iter().flat_map(|part| part.chunks(8)).fold(eight(0), |sum, chunk| {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            mix(sum ^ u64::from_le_bytes(eight))
        });
        let known = *self.replicas.entries.entry((group, index, term)).or_insert(data);
        require(known == data, || format!("two entries of group {group} have index {index} and term {term}"))
    }

    /// A process leads a group in a term, or does not.
    pub(crate) fn leads(&mut self, life: u64, group: u16, term: Option<u64>) -> Verdict {
        let before = self.replicas.leads.get(&(group, life)).copied();
        if before == term {
            return Ok(());
        }
        if before.is_some() {
            // Its leases are no longer in force.
            let own = self
                .tasks
                .iter_mut()
                .filter(|(id, _)| id.partition().0 == group)
                .flat_map(|(_, task)| &mut task.leases);
            own.filter(|lease| lease.life == life && Some(term_of(lease.token)) != term)
                .for_each(|lease| lease.may_be_over = true);
        }
        let Some(term) = term else {
            self.replicas.leads.remove(&(group, life));
            return Ok(());
        };
        if self.is_loud {
            eprintln!("          process {life} leads group {group} in term {term}");
        }
        self.replicas.leads.insert((group, life), term);
        let leader = *self.replicas.leaders.entry((group, term)).or_insert(life);
        require(leader == life, || format!("processes {leader} and {life} lead group {group} in term {term}"))
    }

    /// Terms in which a group was led.
    pub(crate) fn leaderships(&self) -> u64 {
        self.replicas.leaders.len() as u64
    }

    /// A replica has applied up to `index` and its state is `hash`.
    pub(crate) fn replica(&mut self, life: u64, group: u16, index: u64, hash: u64) -> Verdict {
        match self.replicas.states.insert((group, index), hash) {
            None => Ok(()),
            Some(other) => {
                self.replicas.compared += 1;
                require(other == hash, || {
                    format!(
                        "group {group} at index {index}: process {life} has state {hash:#x}, another had {other:#x}"
                    )
                })
            }
        }
    }

    pub(crate) const fn compared(&self) -> u64 {
        self.replicas.compared
    }
}
