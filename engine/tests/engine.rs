//! The engine driven from outside: frames in, frames and log entries out, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "engine/world.rs"]
mod world;

#[path = "engine/job.rs"]
mod job;

#[path = "engine/lifecycle.rs"]
mod lifecycle;

#[path = "engine/leases.rs"]
mod leases;

#[path = "engine/keys.rs"]
mod keys;

#[path = "engine/memo.rs"]
mod memo;

#[path = "engine/queues.rs"]
mod queues;

#[path = "engine/permits.rs"]
mod permits;

#[path = "engine/order.rs"]
mod order;

#[path = "engine/speculation.rs"]
mod speculation;

#[path = "engine/preemption.rs"]
mod preemption;

#[path = "engine/giving_up.rs"]
mod giving_up;

#[path = "engine/restarts.rs"]
mod restarts;

#[path = "engine/shares.rs"]
mod shares;

#[path = "engine/park.rs"]
mod park;

#[path = "engine/neighbours.rs"]
mod neighbours;

#[path = "engine/site.rs"]
mod site;

#[path = "engine/wide.rs"]
mod wide;

#[path = "engine/aged.rs"]
mod aged;

#[path = "engine/deadlines.rs"]
mod deadlines;

#[path = "engine/chances.rs"]
mod chances;

#[path = "engine/shadows.rs"]
mod shadows;

#[path = "engine/time.rs"]
mod time;

#[path = "engine/outcomes.rs"]
mod outcomes;

#[path = "engine/workflows.rs"]
mod workflows;

#[path = "engine/wishes.rs"]
mod wishes;

#[path = "engine/paths.rs"]
mod paths;

#[path = "engine/checkpoints.rs"]
mod checkpoints;

#[path = "engine/events.rs"]
mod events;

#[path = "engine/streams.rs"]
mod streams;

#[path = "engine/recovery.rs"]
mod recovery;

#[path = "engine/moments.rs"]
mod moments;

#[path = "engine/states.rs"]
mod states;

#[path = "engine/restored.rs"]
mod restored;

#[path = "engine/random.rs"]
mod random;

#[path = "engine/hostile.rs"]
mod hostile;

#[path = "engine/memory.rs"]
mod memory;

#[path = "engine/model.rs"]
mod model;

#[path = "engine/chaos.rs"]
mod chaos;

#[path = "engine/shards.rs"]
mod shards;

#[path = "engine/simulated.rs"]
mod simulated;
