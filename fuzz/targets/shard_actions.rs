//! Any sequence of well-formed requests and events into a shard: no panic, and recovery finds the same state.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| taskmaster_fuzz::actions::run(data));
