//! Chooses who runs beside whom: pairs whose worth is highest in sum.
//!
//! The best pair first is a poor rule: two tasks that go with anybody are spent on each other, and those that go with few stay
//! alone. So from there on any three pairs are divided anew in the best way, until none of them gains. It ends, as the sum
//! rises with every step, and after [`ROUNDS`] at the latest; a round looks at 15 ways for any three pairs. Two that are
//! worth nothing together are alone.

/// Rounds of improvement at most.
const ROUNDS: usize = 16;
/// What a step has to gain at least.
const GAIN_MIN: f32 = 1e-5;
/// Nobody.
const NONE: usize = usize::MAX;
/// All ways to make three pairs of six.
const WAYS: [[usize; 6]; 15] = [
    [0, 1, 2, 3, 4, 5],
    [0, 1, 2, 4, 3, 5],
    [0, 1, 2, 5, 3, 4],
    [0, 2, 1, 3, 4, 5],
    [0, 2, 1, 4, 3, 5],
    [0, 2, 1, 5, 3, 4],
    [0, 3, 1, 2, 4, 5],
    [0, 3, 1, 4, 2, 5],
    [0, 3, 1, 5, 2, 4],
    [0, 4, 1, 2, 3, 5],
    [0, 4, 1, 3, 2, 5],
    [0, 4, 1, 5, 2, 3],
    [0, 5, 1, 2, 3, 4],
    [0, 5, 1, 3, 2, 4],
    [0, 5, 1, 4, 2, 3],
];

/// What any two tasks are worth together, more than alone.
struct Worths {
    count: usize,
    table: Vec<f32>,
}

impl Worths {
    fn of(&self, a: usize, b: usize) -> f32 {
        if a == NONE || b == NONE { 0.0 } else { self.table[a.min(b) * self.count + a.max(b)] }
    }
}

/// Pairs among `count` tasks, each with the lower number first. What two are worth together, more than alone, is told by
/// `worth`; those for whom that is no positive number stay apart.
#[must_use]
pub fn pairs(count: usize, worth: impl Fn(usize, usize) -> f32) -> Vec<(usize, usize)> {
    let mut table = vec![0.0; count * count];
    for a in 0..count {
        for b in a + 1..count {
            let worth = worth(a, b);
            table[a * count + b] = if worth.is_finite() { worth.max(0.0) } else { 0.0 };
        }
    }
    let worths = Worths { count, table };
    let mut places = greedy(&worths);
    places.resize(places.len().max(3), [NONE; 2]);
    for _ in 0..ROUNDS {
        if !improve(&mut places, &worths) {
            break;
        }
    }
    places.retain(|[a, b]| worths.of(*a, *b) > 0.0);
    places.into_iter().map(|[a, b]| (a.min(b), a.max(b))).collect()
}

/// The best pair first; those that are left are put together as they come.
fn greedy(worths: &Worths) -> Vec<[usize; 2]> {
    let all = (0..worths.count).flat_map(|a| (a + 1..worths.count).map(move |b| (a, b)));
    let mut candidates: Vec<(f32, usize, usize)> = all.map(|(a, b)| (worths.of(a, b), a, b)).collect();
    candidates.sort_by(|x, y| y.0.total_cmp(&x.0));
    let mut is_free = vec![true; worths.count];
    let mut places = Vec::new();
    for (_, a, b) in candidates {
        if is_free[a] && is_free[b] {
            (is_free[a], is_free[b]) = (false, false);
            places.push([a, b]);
        }
    }
    places.extend((0..worths.count).filter(|task| is_free[*task]).map(|task| [task, NONE]));
    places
}

/// Divides any three pairs anew, if that gains. Whether any did.
fn improve(places: &mut [[usize; 2]], worths: &Worths) -> bool {
    let mut has_gained = false;
    for i in 0..places.len() {
        for j in i + 1..places.len() {
            for k in j + 1..places.len() {
                let [[a, b], [c, d], [e, f]] = [places[i], places[j], places[k]];
                let tasks = [a, b, c, d, e, f];
                let sum = |way: &[usize; 6]| -> f32 {
                    way.chunks_exact(2).map(|pair| worths.of(tasks[pair[0]], tasks[pair[1]])).sum()
                };
                let Some(best) = WAYS.iter().max_by(|x, y| sum(x).total_cmp(&sum(y))) else { continue };
                if sum(best) > sum(&WAYS[0]) + GAIN_MIN {
                    let [a, b, c, d, e, f] = best.map(|at| tasks[at]);
                    (places[i], places[j], places[k]) = ([a, b], [c, d], [e, f]);
                    has_gained = true;
                }
            }
        }
    }
    has_gained
}
