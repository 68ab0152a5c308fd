//! Bars of the choice of workers.

use std::error::Error;
use std::time::Instant;

use taskmaster_scheduler::critical::project::Random;
use taskmaster_scheduler::place::contention::{Contention, PAIR_MIN, Sample};
use taskmaster_scheduler::place::pairing;
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

fn mean(pair: &[Sample; 2]) -> f32 {
    f32::midpoint(pair[0].speed, pair[1].speed)
}

impl Tally {
    fn add(&mut self, pair: &[Sample; 2]) {
        let speed = f64::from(mean(pair));
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
    let [mut plain, mut chosen, mut ours, mut knowing] = std::array::from_fn(|_| Tally::default());
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
        let speed = |a: usize, b: usize| measured(pool[a], pool[b]).map_or(0.0, mean);
        let of_all = |worth: &dyn Fn(usize, usize) -> f32, tally: &mut Tally| {
            let found = pairing::pairs(POOL, |a, b| if speed(a, b) > 0.0 { worth(a, b) } else { 0.0 });
            tally.alone += (POOL - 2 * found.len()) as f64;
            let found = found.into_iter().filter_map(|(a, b)| measured(pool[a], pool[b]));
            found.for_each(|pair| tally.add(pair));
        };
        of_all(&|a, b| model.worth(pool[a], pool[b]), &mut ours);
        of_all(&|a, b| speed(a, b) - PAIR_MIN, &mut knowing);
    }
    let text = format!("{} (speeds known beforehand {})", ours.text(), knowing.text());
    let row = |how: &str, text: String| {
        let name = format!("co-location, 10% of pairs seen, {how}: mean speed / pairs under 0.85");
        Row::new(name, plain.text(), ".971 / 8.6%", ".985 / 5%", text)
    };
    Ok(vec![row("one beside the best of 15", chosen.text()), row("all 16 in pairs", text)])
}

/// Device share in use when as much was asked for as there is.
pub(crate) fn placement(traces: &Traces, _: &Options) -> Result<Vec<Row>, Box<dyn Error>> {
    let nodes = "scheduling/alibaba/openb_node_list_all_node.csv.gz";
    let pods = "scheduling/alibaba/openb_pod_list_default.csv.gz";
    let workers = openb::nodes(nodes, &traces.text(nodes)?)?;
    let pods = openb::pods(pods, &traces.text(pods)?)?;
    let whole: u32 = workers.iter().map(Worker::free_share).sum();
    let fits = [Fit::Worst, Fit::First, Fit::Best, Fit::Fragmentation, Fit::Future];
    let (mut sums, mut spent, mut decisions) = ([0.0; 5], 0.0, 0.0);
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
            let start = Instant::now();
            *sum += Placement::devices_in_use(&workers, &asks, fit) / seeds as f64;
            if fit == Fit::Future {
                (spent, decisions) = (spent + start.elapsed().as_secs_f64(), decisions + asks.len() as f64);
            }
        }
    }
    let [worst, first, best, fragmentation, ours] = sums.map(|sum| format!("{:.1}%", 100.0 * sum));
    let text = format!(
        "{ours} (first fit {first}, best fit {best}, fragmentation {fragmentation}; {:.2} ms a decision)",
        1e3 * spent / decisions
    );
    Ok(vec![Row::new("placement, openb: devices in use at a demand of 100%", worst, "94.3%", "96.5%", text)])
}
