//! What a task says of its place beside the resources that it needs: others with which it runs as well, and labels of workers that go first.
//!
//! On the wire both are pairs among the custom resources, under names of their own ([`ALTERNATIVE`], [`PREFERRED`]), so logs, snapshots and clients
//! that know nothing of them are read as before.

use core::fmt;
use std::collections::BTreeSet;

use taskmaster_protocol::body::{ALTERNATIVE, LABEL, PREFERRED};
use taskmaster_protocol::limits::ALTERNATIVES_MAX;

use crate::resources::Resources;

/// Beside the resources of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wishes {
    /// With which it runs where there is no room for the first, in the order in which they are tried.
    pub(crate) others: Vec<Resources>,
    /// Labels of workers that go first, by the names that they have among a worker's resources; sorted.
    pub(crate) labels: Vec<String>,
}

/// Resources as they are read, pair by pair.
#[derive(Default)]
struct Set {
    cpu_milli: u32,
    memory_bytes: u64,
    gpu_milli: u32,
    custom: String,
    counted: BTreeSet<String>,
}

impl Set {
    fn add(&mut self, name: &str, amount: &str) -> Result<(), String> {
        let wrong = || format!("{name} of an alternative must be a whole amount above zero, not \"{amount}\"");
        let number: u64 = amount.parse().ok().filter(|&number| number > 0).ok_or_else(wrong)?;
        let short = || u32::try_from(number).map_err(|_| wrong());
        if matches!(name, "cpu_milli" | "gpu_milli" | "memory_bytes") && !self.counted.insert(name.to_owned()) {
            return Err(format!("an alternative names {name} twice"));
        }
        match name {
            "cpu_milli" => self.cpu_milli = short()?,
            "gpu_milli" => self.gpu_milli = short()?,
            "memory_bytes" => self.memory_bytes = number,
            _ if name.starts_with(ALTERNATIVE) || name.starts_with(PREFERRED) => {
                return Err(format!("an alternative has no alternatives or preferences of its own, see \"{name}\""));
            }
            _ => {
                let comma = if self.custom.is_empty() { "" } else { "," };
                self.custom.push_str(&format!("{comma}{name}={amount}"));
            }
        }
        Ok(())
    }
}

/// Reads what a task asks for from the wire form.
///
/// # Errors
/// A sentence about the pair that is wrong.
pub(crate) fn parse(
    cpu_milli: u32,
    memory_bytes: u64,
    gpu_milli: u32,
    custom: &str,
) -> Result<(Resources, Wishes), String> {
    if !custom.contains(ALTERNATIVE) && !custom.contains(PREFERRED) {
        return Ok((Resources::parse(cpu_milli, memory_bytes, gpu_milli, custom)?, Wishes::default()));
    }
    let (mut own, mut sets, mut labels) = (Vec::new(), Vec::<Set>::new(), Vec::new());
    for pair in custom.split(',') {
        if let Some(of) = pair.strip_prefix(ALTERNATIVE) {
            let parts = of.split_once('/').and_then(|(number, rest)| Some((number, rest.rsplit_once('=')?)));
            let place = |text: &str| (1..=ALTERNATIVES_MAX).find(|number| number.to_string() == text);
            let Some((number, (name, amount))) = parts.and_then(|(number, rest)| Some((place(number)?, rest))) else {
                return Err(format!(
                    "\"{pair}\" must be {ALTERNATIVE}NUMBER/NAME=AMOUNT, with numbers from 1 to {ALTERNATIVES_MAX}"
                ));
            };
            if sets.len() < number {
                sets.resize_with(number, Set::default);
            }
            sets[number - 1].add(name, amount)?;
        } else if let Some(of) = pair.strip_prefix(PREFERRED) {
            let label = of.strip_suffix("=1").filter(|label| {
                label.split_once('/').is_some_and(|(name, value)| !name.is_empty() && !value.is_empty())
            });
            let label = label.ok_or_else(|| format!("\"{pair}\" must be {PREFERRED}NAME/VALUE=1"))?;
            labels.push(format!("{LABEL}{label}"));
        } else {
            own.push(pair);
        }
    }
    labels.sort();
    labels.dedup();
    let first = Resources::parse(cpu_milli, memory_bytes, gpu_milli, &own.join(","))?;
    let of = |set: &Set| Resources::parse(set.cpu_milli, set.memory_bytes, set.gpu_milli, &set.custom);
    let others = sets.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    for (number, other) in (1..).zip(&others) {
        if other.is_empty() {
            return Err(format!(
                "alternative {number} names no resource: a task that may run with nothing needs no other"
            ));
        }
        if *other == first || others[..number - 1].contains(other) {
            return Err(format!("alternative {number} is the same as one before it: {other}"));
        }
    }
    Ok((first, Wishes { others, labels }))
}

impl Wishes {
    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        self.others.is_empty() && self.labels.is_empty()
    }

    /// How many of the preferred labels a worker has that offers so much.
    pub(crate) fn labels_of(&self, offer: Option<&Resources>) -> usize {
        let has = |label: &&String| offer.is_some_and(|offer| offer.custom.iter().any(|(name, _)| name == *label));
        self.labels.iter().filter(has).count()
    }

    /// The resources with which a task runs that needs `first` otherwise: 0 is the first, others from 1 on.
    pub(crate) fn set<'a>(&'a self, first: &'a Resources, number: u8) -> &'a Resources {
        number.checked_sub(1).map_or(first, |other| &self.others[usize::from(other)])
    }

    /// All of them.
    pub(crate) fn sets<'a>(&'a self, first: &'a Resources) -> impl Iterator<Item = &'a Resources> {
        core::iter::once(first).chain(&self.others)
    }
}

/// All that a task asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a>(pub(crate) &'a Resources, pub(crate) &'a Wishes);

impl<'a> Asked<'a> {
    /// The resources with which it may run, in the order in which they are tried, by number.
    pub(crate) fn sets(self) -> impl Iterator<Item = (u8, &'a Resources)> {
        (0u8..).zip(self.1.sets(self.0))
    }
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(first, wishes) = self;
        write!(f, "{first}")?;
        for other in &wishes.others {
            write!(f, ", or {other}")?;
        }
        for label in &wishes.labels {
            let label = label.trim_start_matches(LABEL).replacen('/', "=", 1);
            write!(f, ", rather with the label {label}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_and_preferences_are_read_beside_what_is_needed() {
        let custom = "prefer/zone/north=1,licence=1,or/1/cpu_milli=8000,or/2/cpu_milli=4000,or/2/licence=2,or/2/label/zone/south=1";
        let (first, wishes) = parse(0, 0, 1_000, custom).unwrap();
        assert_eq!(first, Resources::parse(0, 0, 1_000, "licence=1").unwrap());
        let second = Resources::parse(4_000, 0, 0, "licence=2,label/zone/south=1").unwrap();
        assert_eq!(wishes.others, [Resources::parse(8_000, 0, 0, "").unwrap(), second]);
        assert_eq!(wishes.labels, ["label/zone/north"]);
        assert_eq!((wishes.set(&first, 0), wishes.set(&first, 2)), (&first, &wishes.others[1]));
        let words = "1000 milli-gpu, 1 licence, or 8000 milli-cpu, or 4000 milli-cpu, label zone=south, 2 licence, rather with the label zone=north";
        assert_eq!(Asked(&first, &wishes).to_string(), words);
        let north = Resources::parse(0, 0, 0, "label/zone/north=4294967296").unwrap();
        assert_eq!((wishes.labels_of(Some(&north)), wishes.labels_of(Some(&first)), wishes.labels_of(None)), (1, 0, 0));
        assert_eq!(parse(1, 2, 3, "a=4").unwrap(), (Resources::parse(1, 2, 3, "a=4").unwrap(), Wishes::default()));
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_sentence() {
        for (custom, why) in [
            ("or/0/cpu_milli=1", "numbers from 1 to 4"),
            ("or/5/cpu_milli=1", "numbers from 1 to 4"),
            ("or/x/cpu_milli=1", "numbers from 1 to 4"),
            ("or/1", "must be or/NUMBER/NAME=AMOUNT"),
            ("or/1/cpu_milli", "must be or/NUMBER/NAME=AMOUNT"),
            ("or/1/cpu_milli=0", "above zero"),
            ("or/1/cpu_milli=99999999999", "whole amount"),
            ("or/1/cpu_milli=-1", "whole amount"),
            ("or/2/cpu_milli=1", "alternative 1 names no resource"),
            ("or/1/gpu_milli=1000", "the same as one before"),
            ("or/1/cpu_milli=1,or/2/cpu_milli=1", "alternative 2 is the same"),
            ("or/1/licence=1,or/1/licence=2", "distinct"),
            ("or/+1/cpu_milli=1", "numbers from 1 to 4"),
            ("or/1/cpu_milli=1,or/1/cpu_milli=2", "cpu_milli twice"),
            ("or/1/or/1/cpu_milli=1", "no alternatives or preferences of its own"),
            ("or/1/prefer/zone/north=1", "no alternatives or preferences of its own"),
            ("prefer/zone=1", "must be prefer/NAME/VALUE=1"),
            ("prefer/zone/north=2", "must be prefer/NAME/VALUE=1"),
            ("prefer//north=1", "must be prefer/NAME/VALUE=1"),
            ("prefer/zone/north=1,licence", "name=amount"),
        ] {
            let refused = parse(0, 0, 1_000, custom).unwrap_err();
            assert!(refused.contains(why), "{custom}: {refused}");
        }
    }
}
