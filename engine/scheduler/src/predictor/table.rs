//! A flat hashed table of cells: fixed size, linear probing over one short run, and no allocation after it was made.
//!
//! A key has `PROBES` places. Where all are taken by others, the one with the least weight makes room, after its weight
//! was halved a few times: hostile keys can displace what is seldom used, never grow the table.

/// Places of a key.
const PROBES: usize = 8;

/// What is known of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cell {
    /// Weight of its samples, forgetting.
    pub weight: f32,
    /// Samples, up to a bound.
    pub count: f32,
    /// Mean of the logarithm of the run time.
    pub log_mean: f32,
    /// Mean distance of the logarithms from the median as it stood.
    pub spread: f32,
    /// Mean of the inverse run time.
    pub inverse: f32,
    /// Logarithm of the median.
    pub q50: f32,
    /// Logarithm of the 0.9 quantile.
    pub q90: f32,
    /// Part that failed.
    pub failed: f32,
}

/// What a table can hold: something with a weight, by which it is displaced.
pub trait Weighed: Clone + Default {
    /// Its weight, which may be changed.
    fn weight(&mut self) -> &mut f32;
}

impl Weighed for Cell {
    fn weight(&mut self) -> &mut f32 {
        &mut self.weight
    }
}

/// The table. Keys lie apart from the cells: the places of a key are one line of the cache.
#[derive(Clone, Debug)]
pub struct Table<C = Cell> {
    keys: Box<[u64]>,
    cells: Box<[C]>,
    mask: usize,
}

impl<C: Weighed> Table<C> {
    /// The keys and their cells, those without weight among them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &C)> {
        self.keys.iter().copied().zip(&self.cells).filter(|(key, _)| *key != 0)
    }

    /// A table of at least `cells` cells.
    #[must_use]
    pub fn new(cells: usize) -> Self {
        let size = cells.clamp(PROBES, 1 << 28).next_power_of_two();
        let cells = vec![C::default(); size].into_boxed_slice();
        Self { keys: vec![0; size].into_boxed_slice(), cells, mask: size - 1 }
    }

    /// Its cells, used and unused.
    pub(crate) fn size(&self) -> usize {
        self.cells.len()
    }

    fn home(&self, key: u64) -> usize {
        // The first of a run is aligned to it.
        let home = (key >> 8) as usize;
        home & self.mask & !(PROBES - 1)
    }

    fn find(&self, home: usize, key: u64) -> Option<usize> {
        self.keys[home..home + PROBES].iter().position(|other| *other == key)
    }

    /// The cell of `key`; there is none for 0.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&C> {
        let home = self.home(key);
        let place = self.find(home, key).filter(|_| key != 0)?;
        Some(&self.cells[home + place])
    }

    /// The cell of `key`, which has no weight when it is new.
    ///
    /// # Panics
    /// For key 0.
    pub fn entry(&mut self, key: u64) -> &mut C {
        assert_ne!(key, 0, "0 is no key");
        let home = self.home(key);
        if let Some(place) = self.find(home, key) {
            return &mut self.cells[home + place];
        }
        let place = self.find(home, 0).unwrap_or_else(|| {
            let run = &mut self.cells[home..home + PROBES];
            let (mut least, mut least_weight) = (0, f32::INFINITY);
            for (place, cell) in run.iter_mut().enumerate() {
                let weight = cell.weight();
                *weight *= 0.75;
                if *weight < least_weight {
                    (least, least_weight) = (place, *weight);
                }
            }
            least
        });
        self.keys[home + place] = key;
        let cell = &mut self.cells[home + place];
        *cell = C::default();
        cell
    }
}
