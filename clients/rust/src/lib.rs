//! Async Rust client and worker for Taskmaster.
