//! Load generator, reports and criterion benches.
