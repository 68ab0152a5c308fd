//! Which core each shard runs on: distinct physical cores first, so that hyperthreads share one only when they must, and
//! NUMA nodes in turn, so that memory bandwidth is shared out.

use std::collections::BTreeMap;
use std::path::Path;

/// A CPU this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cpu {
    number: usize,
    core: (usize, usize),
    node: usize,
}

/// CPUs for `shards` shards, best first; empty when the kernel does not say which may be used.
pub(crate) fn cpus_for(shards: usize) -> Vec<usize> {
    let mut order = order(allowed(Path::new("/sys/devices/system")));
    let count = order.len();
    if count > 0 {
        order = (0..shards).map(|shard| order[shard % count]).collect();
    }
    order
}

fn allowed(system: &Path) -> Vec<Cpu> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&number| set.is_set(number))
        .map(|number| describe(system, number))
        .collect()
}

fn describe(system: &Path, number: usize) -> Cpu {
    let directory = system.join(format!("cpu/cpu{number}"));
    let read = |name: &str| {
        let text = std::fs::read_to_string(directory.join("topology").join(name)).ok()?;
        text.trim().parse::<usize>().ok()
    };
    let core = (read("physical_package_id").unwrap_or(0), read("core_id").unwrap_or(number));
    let node = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten()
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .unwrap_or(0);
    Cpu { number, core, node }
}

/// First one thread of every core, nodes in turn; then the second threads, and so on.
fn order(cpus: Vec<Cpu>) -> Vec<usize> {
    let mut threads_of_core: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut cores_of_node: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut ranked: Vec<((usize, usize, usize), usize)> = Vec::new();
    for cpu in cpus {
        let thread = threads_of_core.entry(cpu.core).or_default();
        let turn = cores_of_node.entry((*thread, cpu.node)).or_default();
        ranked.push(((*thread, *turn, cpu.node), cpu.number));
        *thread += 1;
        *turn += 1;
    }
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperthreads_come_last_and_nodes_take_turns() {
        let cpu = |number, core, node| Cpu { number, core: (node, core), node };
        let cpus = vec![
            cpu(0, 0, 0),
            cpu(1, 0, 0),
            cpu(2, 1, 0),
            cpu(3, 1, 0),
            cpu(4, 0, 1),
            cpu(5, 0, 1),
            cpu(6, 1, 1),
            cpu(7, 1, 1),
        ];
        assert_eq!(order(cpus), [0, 4, 2, 6, 1, 5, 3, 7]);
    }

    #[test]
    fn every_shard_gets_a_core() {
        assert_eq!(cpus_for(3).len(), 3);
    }
}
