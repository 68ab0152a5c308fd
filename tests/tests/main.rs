//! The integration binary: simulator, real processes, workflows, client against node, and the rules of the house.

mod simulator;
