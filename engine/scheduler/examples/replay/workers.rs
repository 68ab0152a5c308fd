//! Bars of the choice of workers.

use std::error::Error;

use taskmaster_scheduler::critical::project::Random;
use taskmaster_scheduler::place::contention::{Contention, Sample};
use taskmaster_scheduler::place::{Fit, Placement, Worker};
use taskmaster_scheduler::replay::{lucid, openb};

use crate::Options;
use crate::load::Traces;
use crate::table::Row;

/// Part of the pairs that is seen.
const SEEN: f64 = 0.1;
/// Jobs that wait for a partner.
const POOL: usize = 16;
const TRIALS: u64 = 300;

#[derive(Default)]
struct Tally {
    speeds: f64,
    slow: f64,
    pairs: f64,
    alone: f64,
}

impl Tally {
    fn add(&mut self, pair: &[Sample; 2]) {
        let speed = f64::from(f32::midpoint(pair[0].speed, pair[1].speed));
        self.speeds += speed;
        self.slow += f64::from(u8::from(speed < 0.85));
        self.pairs += 1.0;
    }

    fn text(&self) -> String {
        let alone = 100.0 * self.alone / (self.alone + 2.0 * self.pairs);
        format!("{:.3} / {:.1}%, alone {alone:.0}%", self.speeds / self.pairs, 100.0 * self.slow / self.pairs)
    }
}

fn shuffle<T>(random: &mut Random, values: &mut [T]) {
    for place in (1..values.len()).rev() {
        values.swap(place, random.below(place + 1));
    }
}

/// Partners for jobs that share a device, of whose pairs a tenth was seen.
pub(crate) fn colocation(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let (alone, pairs) = ("scheduling/lucid/single_dev.csv", "scheduling/lucid/colocate_dev.csv");
    let data = lucid::read((alone, &traces.text(alone)?), (pairs, &traces.text(pairs)?))?;
    let measured = |a: usize, b: usize| {
        data.samples
            .iter()
            .find(|pair| pair[0].task.min(pair[0].other) == a.min(b) && pair[0].task.max(pair[0].other) == a.max(b))
    };
    let (mut plain, mut chosen, mut ours) = (Tally::default(), Tally::default(), Tally::default());
    for seed in 1..=TRIALS {
        let mut random = Random::new(seed);
        let mut order: Vec<usize> = (0..data.samples.len()).collect();
        shuffle(&mut random, &mut order);
        let count = (data.samples.len() as f64 * SEEN).round() as usize;
        let seen: Vec<Sample> = order[..count].iter().flat_map(|place| data.samples[*place]).collect();
        let model = Contention::learn(&data.profiles, &seen);
        let pool: Vec<usize> = (0..POOL).map(|_| random.below(data.profiles.len())).collect();
        for pair in pool.chunks(2) {
            if let Some(pair) = measured(pair[0], pair[1]) {
                plain.add(pair);
            }
        }
        // One that arrives chooses among those that run alone.
        let (new, running) = (pool[0], &pool[1..]);
        let known: Vec<usize> = running.iter().copied().filter(|other| measured(new, *other).is_some()).collect();
        let best = known.iter().filter_map(|other| model.pair(new, *other).map(|speed| (speed, *other)));
        match best.max_by(|x, y| x.0.total_cmp(&y.0)).and_then(|(_, other)| measured(new, other)) {
            Some(pair) => chosen.add(pair),
            None => chosen.alone += 1.0,
        }
        let mut waiting = pool;
        let mut candidates: Vec<(f32, usize, usize)> = Vec::new();
        for a in 0..POOL {
            for b in a + 1..POOL {
                if measured(waiting[a], waiting[b]).is_some()
                    && let Some(speed) = model.pair(waiting[a], waiting[b])
                {
                    candidates.push((speed, a, b));
                }
            }
        }
        candidates.sort_by(|x, y| y.0.total_cmp(&x.0));
        for (_, a, b) in candidates {
            if waiting[a] != usize::MAX && waiting[b] != usize::MAX {
                measured(waiting[a], waiting[b]).into_iter().for_each(|pair| ours.add(pair));
                (waiting[a], waiting[b]) = (usize::MAX, usize::MAX);
            }
        }
        ours.alone += waiting.iter().filter(|job| **job != usize::MAX).count() as f64;
    }
    let row = |how: &str, tally: &Tally| {
        let name = format!("co-location, 10% of pairs seen, {how}: mean speed / pairs under 0.85");
        Row::new(name, plain.text(), ".971 / 8.6%", ".985 / 5%", tally.text())
    };
    Ok(vec![row("one beside the best of 15", &chosen), row("all 16 in pairs", &ours)])
}

/// Device share in use when as much was asked for as there is.
pub(crate) fn placement(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let nodes = "scheduling/alibaba/openb_node_list_all_node.csv.gz";
    let pods = "scheduling/alibaba/openb_pod_list_default.csv.gz";
    let workers = openb::nodes(nodes, &traces.text(nodes)?)?;
    let pods = openb::pods(pods, &traces.text(pods)?)?;
    let whole: u32 = workers.iter().map(Worker::free_share).sum();
    let fits = [Fit::Worst, Fit::First, Fit::Best, Fit::Fragmentation, Fit::Future];
    let mut sums = [0.0; 5];
    let seeds = 2;
    for seed in 1..=seeds {
        let mut random = Random::new(seed);
        let mut order = pods.clone();
        shuffle(&mut random, &mut order);
        // Once each in a random order, then drawn anew, until as much is asked for as there is.
        let (mut asks, mut asked, mut next) = (Vec::new(), 0, 0);
        while asked < whole {
            let ask = if next < order.len() { order[next] } else { pods[random.below(pods.len())] };
            next += 1;
            asked += ask.devices * ask.share;
            asks.push(ask);
        }
        for (sum, fit) in sums.iter_mut().zip(fits) {
            *sum += Placement::devices_in_use(&workers, &asks, fit) / seeds as f64;
        }
    }
    let [worst, first, best, fragmentation, ours] = sums.map(|sum| format!("{:.1}%", 100.0 * sum));
    let text = format!("{ours} (first fit {first}, best fit {best}, fragmentation {fragmentation})");
    Ok(vec![Row::new("placement, openb: devices in use at a demand of 100%", worst, "94.3%", "96.5%", text)])
}
