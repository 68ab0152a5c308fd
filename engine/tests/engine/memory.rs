//! What a ready task costs beyond its payload.

use crate::job::jobs;
use crate::world::{World, config};

#[test]
fn a_ready_task_costs_at_most_160_bytes_beyond_its_payload() {
    let mut world = World::with(taskmaster_engine::Config { memory_bytes_max: 4 << 30, ..config(64) });
    let per_partition = 1_000_000 / 64;
    for partition in 0..64 {
        for first in (0..per_partition).step_by(625) {
            let mut batch: Vec<_> =
                jobs("mail", first, 625).into_iter().map(|job| job.in_partition(partition)).collect();
            batch.iter_mut().for_each(|job| job.payload = vec![7; 64]);
            world.submit(&batch);
        }
    }
    let stats = world.shard.stats();
    assert_eq!(stats.tasks, 1_000_000);
    let overhead = (stats.memory_bytes - stats.blob_bytes) as f64 / stats.tasks as f64;
    println!("{overhead:.1} bytes beyond the payload per ready task");
    assert!(overhead <= 100.0, "{overhead}");
}
