//! The engine driven from outside: frames in, frames and log entries out, in virtual time.

#[path = "engine/world.rs"]
mod world;

#[path = "engine/job.rs"]
mod job;

#[path = "engine/lifecycle.rs"]
mod lifecycle;

#[path = "engine/leases.rs"]
mod leases;
