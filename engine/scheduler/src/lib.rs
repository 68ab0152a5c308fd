//! The scheduler: which task is next, and where it runs. Learned, bounded, deterministic; without a clock, a file, a
//! thread or chance. What it decides is proposed on a leader; its numbers never enter replicated state.
//!
//! Read in this order: [`predictor`] says how long a task will take, [`order`] makes a rank of that and bounds what ranks
//! may do, [`queue`] keeps tasks of one slot and [`backfill`] starts wide ones, [`lengths`] and [`restart`] say
//! when a task is given up for another, [`straggler`] when a second attempt is made beside one,
//! [`wide`] joins these for one machine, [`guard`] decides whether any of it is used; [`critical`] orders workflows, and
//! [`place`] chooses workers. `replay` drives the same code over traces in virtual time.

pub mod backfill;
pub mod chance;
pub mod critical;
pub mod guard;
pub mod lengths;
pub mod order;
pub mod place;
pub mod predictor;
pub mod queue;
#[cfg(feature = "replay")]
pub mod replay;
pub mod restart;
pub mod shadow;
pub mod straggler;
#[cfg(test)]
mod testing;
pub mod wide;

/// A time or a duration in milliseconds.
pub type Millis = i64;
