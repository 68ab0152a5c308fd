//! Typed resources: CPU, memory, GPU and named custom ones.

use core::fmt;

use taskmaster_protocol::body::LABEL;

/// Amounts asked for or offered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Resources {
    /// Thousandths of a core.
    pub(crate) cpu_milli: u64,
    /// Bytes.
    pub(crate) memory_bytes: u64,
    /// Thousandths of a device.
    pub(crate) gpu_milli: u64,
    /// Named amounts, sorted by name.
    pub(crate) custom: Vec<(String, u64)>,
}

impl Resources {
    /// Reads the wire form; `custom` is `name=amount` pairs separated by commas.
    ///
    /// # Errors
    /// A sentence about the pair that is wrong.
    pub(crate) fn parse(cpu_milli: u32, memory_bytes: u64, gpu_milli: u32, custom: &str) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for pair in custom.split(',').filter(|pair| !pair.is_empty()) {
            let (name, amount) =
                pair.split_once('=').ok_or_else(|| format!("resource \"{pair}\" must be name=amount"))?;
            let amount: u64 =
                amount.parse().map_err(|_| format!("resource \"{name}\" needs a whole amount, not \"{amount}\""))?;
            if name.is_empty() || pairs.iter().any(|(other, _)| other == name) {
                return Err(format!("resource names must be present and distinct, see \"{pair}\""));
            }
            pairs.push((name.to_owned(), amount));
        }
        pairs.sort();
        Ok(Self { cpu_milli: u64::from(cpu_milli), memory_bytes, gpu_milli: u64::from(gpu_milli), custom: pairs })
    }

    /// The custom ones in the wire form.
    pub(crate) fn custom_pairs(&self) -> String {
        let pairs: Vec<String> = self.custom.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
        pairs.join(",")
    }

    /// Its part of those resources that `other` has some of.
    pub(crate) fn within(&self, other: &Self) -> Self {
        let of = |amount: u64, other: u64| if other > 0 { amount } else { 0 };
        let custom = self.custom.iter().filter(|(name, _)| other.amount(name) > 0).cloned();
        Self {
            cpu_milli: of(self.cpu_milli, other.cpu_milli),
            memory_bytes: of(self.memory_bytes, other.memory_bytes),
            gpu_milli: of(self.gpu_milli, other.gpu_milli),
            custom: custom.collect(),
        }
    }

    /// Whether nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many times `self` fits on a worker of this capacity beside `used`, at most `limit`. `None`: the worker counts nothing, and
    /// takes whatever asks for no label.
    pub(crate) fn fits_on(&self, capacity: Option<&Self>, used: &Self, limit: u32) -> u32 {
        match capacity {
            Some(capacity) => self.fits(capacity, used, limit),
            None if self.custom.iter().any(|(name, amount)| *amount > 0 && name.starts_with(LABEL)) => 0,
            None => limit,
        }
    }

    /// How many times `self` fits into `capacity` beside `used`, at most `limit`.
    pub(crate) fn fits(&self, capacity: &Self, used: &Self, limit: u32) -> u32 {
        let of = |need: u64, capacity: u64, used: u64| match need {
            0 => u64::MAX,
            need => capacity.saturating_sub(used) / need,
        };
        let mut times = of(self.cpu_milli, capacity.cpu_milli, used.cpu_milli)
            .min(of(self.memory_bytes, capacity.memory_bytes, used.memory_bytes))
            .min(of(self.gpu_milli, capacity.gpu_milli, used.gpu_milli));
        for (name, need) in &self.custom {
            times = times.min(of(*need, capacity.amount(name), used.amount(name)));
        }
        u32::try_from(times.min(u64::from(limit))).expect("bounded by a u32")
    }

    fn amount(&self, name: &str) -> u64 {
        self.custom.iter().find(|(other, _)| other == name).map_or(0, |(_, amount)| *amount)
    }

    /// The largest part of a resource of `offer` that `self` is; what `offer` has none of is left out.
    pub(crate) fn part_of(&self, offer: &Self) -> f64 {
        use crate::shares::float;
        let part = |amount: u64, offered: u64| if offered == 0 { 0.0 } else { float(amount) / float(offered) };
        let named = self.custom.iter().map(|(name, amount)| part(*amount, offer.amount(name)));
        let others = [
            part(self.cpu_milli, offer.cpu_milli),
            part(self.memory_bytes, offer.memory_bytes),
            part(self.gpu_milli, offer.gpu_milli),
        ];
        named.chain(others).fold(0.0, f64::max)
    }

    /// Adds `other` `times` times.
    pub(crate) fn add(&mut self, other: &Self, times: u64) {
        self.change(other, |have, amount| have.saturating_add(amount.saturating_mul(times)));
    }

    /// Subtracts `other` once.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.change(other, u64::saturating_sub);
        // Tasks may name what no worker ever has.
        self.custom.retain(|(_, amount)| *amount > 0);
    }

    fn change(&mut self, other: &Self, f: impl Fn(u64, u64) -> u64) {
        self.cpu_milli = f(self.cpu_milli, other.cpu_milli);
        self.memory_bytes = f(self.memory_bytes, other.memory_bytes);
        self.gpu_milli = f(self.gpu_milli, other.gpu_milli);
        for (name, amount) in &other.custom {
            if let Some((_, have)) = self.custom.iter_mut().find(|(other, _)| other == name) {
                *have = f(*have, *amount);
            } else {
                self.custom.push((name.clone(), f(0, *amount)));
            }
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        // Of what a worker does not count it offers as much as there can be.
        if self.cpu_milli >= u32::MAX.into() {
            parts.push("any cpu".to_owned());
        } else if self.cpu_milli > 0 {
            parts.push(format!("{} milli-cpu", self.cpu_milli));
        }
        if self.memory_bytes == u64::MAX {
            parts.push("any memory".to_owned());
        } else if self.memory_bytes > 0 {
            parts.push(format!("{} bytes of memory", self.memory_bytes));
        }
        if self.gpu_milli > 0 {
            parts.push(format!("{} milli-gpu", self.gpu_milli));
        }
        let in_words = |(name, amount): &(String, u64)| match name.strip_prefix(LABEL).and_then(|of| of.split_once('/'))
        {
            Some((label, value)) => format!("label {label}={value}"),
            None => format!("{amount} {name}"),
        };
        parts.extend(self.custom.iter().map(in_words));
        f.write_str(if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_decides_how_often_a_task_fits() {
        let need = Resources::parse(500, 1 << 30, 0, "license=1").unwrap();
        let have = Resources::parse(4_000, 16 << 30, 0, "license=3").unwrap();
        let mut used = Resources::default();
        assert_eq!(need.fits(&have, &used, 100), 3);
        used.add(&need, 2);
        assert_eq!(need.fits(&have, &used, 100), 1);
        used.subtract(&need);
        assert_eq!(need.fits(&have, &used, 100), 2);
        assert_eq!(Resources::default().fits(&have, &used, 100), 100);
        assert_eq!(need.fits(&Resources::default(), &Resources::default(), 9), 0);
    }

    #[test]
    fn who_counts_nothing_takes_all_but_what_asks_for_a_label() {
        let none = Resources::default();
        let need = |custom| Resources::parse(500, 1 << 30, 0, custom).unwrap();
        assert_eq!(need("license=1").fits_on(None, &none, 7), 7);
        assert_eq!(need("license=1,label/zone/north=1").fits_on(None, &none, 7), 0);
        let north = Resources::parse(1_000, 1 << 40, 0, "label/zone/north=4294967296").unwrap();
        assert_eq!(need("label/zone/north=1").fits_on(Some(&north), &none, 7), 2);
        assert_eq!(need("label/zone/south=1").fits_on(Some(&north), &none, 7), 0);
        assert_eq!(
            need("label/zone/south=1").to_string(),
            "500 milli-cpu, 1073741824 bytes of memory, label zone=south"
        );
    }

    #[test]
    fn broken_custom_resources_are_named() {
        for custom in ["license", "license=x", "=3", "a=1,a=2"] {
            assert!(Resources::parse(0, 0, 0, custom).is_err(), "{custom}");
        }
    }
}
