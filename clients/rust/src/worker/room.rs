//! What the tasks that run leave of what a worker offers.
//!
//! A shard counts the tasks that it gave itself; the worker has those of all shards and nodes. So it is the worker that keeps what runs
//! within what is there. Devices are told apart here as well: a task has whole ones to itself, and a part of one beside others.

use taskmaster_protocol::body::{ALTERNATIVE, LABEL, PREFERRED};

use crate::task::Resources;

/// Thousandths of a device.
const DEVICE: u32 = 1_000;

/// What a task reserves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) cpu_milli: u32,
    pub(crate) gpu_milli: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) custom: Vec<(String, u64)>,
}

impl Need {
    /// Whether a worker that offers this could run the task, were it idle. One that counts nothing takes whatever asks for no label.
    pub(crate) fn fits(&self, offered: Option<&Room>) -> bool {
        let asks_label = || self.custom.iter().any(|(name, amount)| *amount > 0 && name.starts_with(LABEL));
        offered.map_or_else(|| !asks_label(), |room| room.place(self).is_some())
    }
}

/// What is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    cpu_milli: u64,
    memory_bytes: u64,
    /// Of each device, in thousandths.
    devices: Vec<u32>,
    custom: Vec<(String, u64)>,
}

/// The pairs of `name=amount` in a list; what is none, what is only preferred, and other sets that would do, are left
/// out.
pub(crate) fn pairs(custom: &str) -> Vec<(String, u64)> {
    let pair = |text: &str| {
        let (name, amount) = text.split_once('=')?;
        if name.starts_with(PREFERRED) || name.starts_with(ALTERNATIVE) {
            return None;
        }
        Some((name.to_owned(), amount.parse().ok()?))
    };
    custom.split(',').filter_map(pair).collect()
}

impl Room {
    /// All that is offered; `None`: nothing is counted.
    pub(crate) fn new(offered: &Resources) -> Option<Self> {
        let whole = (0..offered.gpu_milli / DEVICE).map(|_| DEVICE);
        let rest = Some(offered.gpu_milli % DEVICE).filter(|rest| *rest > 0);
        (*offered != Resources::default()).then(|| Self {
            cpu_milli: offered.cpu_milli.into(),
            memory_bytes: offered.memory_bytes,
            devices: whole.chain(rest).collect(),
            custom: pairs(&offered.custom),
        })
    }

    fn left(&self, name: &str) -> u64 {
        self.custom.iter().find(|(other, _)| other == name).map_or(0, |(_, left)| *left)
    }

    /// The devices that a task would have: whole ones first, then the one of which it has a part. `None`: it does not fit.
    pub(super) fn place(&self, need: &Need) -> Option<Vec<u32>> {
        let fits = u64::from(need.cpu_milli) <= self.cpu_milli
            && need.memory_bytes <= self.memory_bytes
            && need.custom.iter().all(|(name, amount)| *amount <= self.left(name));
        if !fits {
            return None;
        }
        let (whole, part) = ((need.gpu_milli / DEVICE) as usize, need.gpu_milli % DEVICE);
        let numbered = || (0u32..).zip(&self.devices);
        // Where least is left, so that devices stay whole; of whole ones the last, which the others leave.
        let best = || numbered().filter(|(_, left)| **left >= part).min_by_key(|&(number, left)| (*left, !number));
        let shared = if part > 0 { Some(best()?.0) } else { None };
        let free = numbered().filter(|&(number, left)| *left == DEVICE && Some(number) != shared);
        let mut devices: Vec<u32> = free.map(|(number, _)| number).take(whole).collect();
        (devices.len() == whole).then(|| {
            devices.extend(shared);
            devices
        })
    }

    /// Takes what a task needs, with the devices where [`Self::place`] put it.
    pub(super) fn take(&mut self, need: &Need, devices: &[u32]) {
        self.change(need, devices, |left, amount| left - amount);
    }

    /// Gives it back.
    pub(super) fn give(&mut self, need: &Need, devices: &[u32]) {
        self.change(need, devices, |left, amount| left + amount);
    }

    fn change(&mut self, need: &Need, devices: &[u32], by: impl Fn(u64, u64) -> u64) {
        self.cpu_milli = by(self.cpu_milli, need.cpu_milli.into());
        self.memory_bytes = by(self.memory_bytes, need.memory_bytes);
        for (name, left) in &mut self.custom {
            let needed = need.custom.iter().find(|(other, _)| other == name);
            *left = by(*left, needed.map_or(0, |(_, amount)| *amount));
        }
        let whole = (need.gpu_milli / DEVICE) as usize;
        for (position, number) in devices.iter().enumerate() {
            let amount = if position < whole { DEVICE } else { need.gpu_milli % DEVICE };
            let left = &mut self.devices[*number as usize];
            *left = u32::try_from(by((*left).into(), amount.into())).expect("no more than a device");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn need(cpu_milli: u32, gpu_milli: u32, custom: &str) -> Need {
        Need { cpu_milli, gpu_milli, memory_bytes: 0, custom: pairs(custom) }
    }

    fn room(cpu_milli: u32, gpu_milli: u32) -> Room {
        Room::new(&Resources::new().cpu_milli(cpu_milli).gpu_milli(gpu_milli).custom("licence", 2)).unwrap()
    }

    #[test]
    fn who_offers_nothing_counts_nothing() {
        assert_eq!(Room::new(&Resources::new()), None);
        assert!(need(1, 1, "other=1").fits(None) && !need(0, 0, "label/zone/north=1").fits(None));
    }

    #[test]
    fn what_is_preferred_or_would_do_instead_needs_no_room() {
        let preferring = need(1_000, 0, "licence=2,prefer/zone/north=1,or/1/licence=9");
        assert!(preferring.fits(None));
        let mut room = room(1_000, 0);
        let whole = room.clone();
        assert_eq!(room.place(&preferring), Some(vec![]));
        room.take(&preferring, &[]);
        assert_eq!(room.left("licence"), 0);
        room.give(&preferring, &[]);
        assert_eq!(room, whole);
    }

    #[test]
    fn parts_of_devices_are_put_together_and_whole_ones_stay_apart() {
        let mut room = room(0, 3_000);
        let mut take = |gpu_milli| {
            let need = need(0, gpu_milli, "");
            let devices = room.place(&need);
            if let Some(devices) = &devices {
                room.take(&need, devices);
            }
            devices
        };
        assert_eq!(take(300), Some(vec![2]));
        assert_eq!(take(600), Some(vec![2]));
        assert_eq!(take(1_500), Some(vec![0, 1]));
        assert_eq!(take(1_000), None);
        assert_eq!(take(200), Some(vec![1]));
        assert_eq!(take(400), None, "a tenth and three tenths are left, of two devices");
        assert_eq!(take(0), Some(vec![]));
    }

    #[test]
    fn what_is_not_offered_fits_nowhere() {
        let room = room(1_000, 0);
        assert_eq!(room.place(&need(1_001, 0, "")), None);
        assert_eq!(room.place(&need(0, 1, "")), None);
        assert_eq!(room.place(&need(0, 0, "other=1")), None);
        assert_eq!(room.place(&need(1_000, 0, "licence=2")), Some(vec![]));
    }

    proptest! {
        #[test]
        fn what_runs_stays_within_what_is_offered_and_all_of_it_comes_back(
            gpu_milli in 0u32..5_000,
            steps in proptest::collection::vec((0u32..3_000, 0u32..2_500, 0u64..3, any::<bool>(), 0usize..20), 1..100),
        ) {
            let whole = room(4_000, gpu_milli);
            let mut room = whole.clone();
            let mut running: Vec<(Need, Vec<u32>)> = Vec::new();
            for (cpu_milli, gpu_milli, licences, ends, which) in steps {
                if ends && !running.is_empty() {
                    let (need, devices) = running.swap_remove(which % running.len());
                    room.give(&need, &devices);
                } else {
                    let need = need(cpu_milli, gpu_milli, &format!("licence={licences}"));
                    let Some(devices) = room.place(&need) else { continue };
                    room.take(&need, &devices);
                    running.push((need, devices));
                }
                prop_assert!(running.iter().map(|(need, _)| need.cpu_milli).sum::<u32>() <= 4_000);
                prop_assert!(running.iter().flat_map(|(need, _)| &need.custom).map(|(_, amount)| amount).sum::<u64>() <= 2);
                for (number, offered) in (0u32..).zip(&whole.devices) {
                    let part = |(need, devices): &(Need, Vec<u32>)| {
                        let position = devices.iter().position(|device| *device == number);
                        position.map_or(0, |at| (need.gpu_milli - 1_000 * u32::try_from(at).unwrap()).min(1_000))
                    };
                    prop_assert!(running.iter().map(part).sum::<u32>() <= *offered);
                }
            }
            for (need, devices) in running {
                room.give(&need, &devices);
            }
            prop_assert_eq!(room, whole);
        }
    }
}
