//! Clusters of real processes under real faults, and the clients' word on what became of their tasks.
//!
//! Invariants: each test has nodes, addresses and directories of its own, and the tests of this module run one after the
//! other, since each keeps three or four nodes busy; what is waited for is a condition with a deadline.

mod clocks;
mod disks;
mod growth;
mod kills;
mod ledger;
mod links;
mod names;
mod networks;
pub(crate) mod nodes;
mod partition;
mod probe;
mod quorum;
mod strangers;
mod tls;
mod upgrade;
