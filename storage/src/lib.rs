//! Write-ahead log, snapshots and data directory.
