//! Log lines of the binary, on standard error.

use std::io::{self, IsTerminal};

use tracing::Level as Most;
use tracing_subscriber::fmt;

use crate::config::{Format, Level};

/// Starts logging; the first call in a process wins. Each `verbose` adds a level, up to trace.
pub(crate) fn start(level: Level, format: Format, verbose: u8) {
    let levels = [Most::ERROR, Most::WARN, Most::INFO, Most::DEBUG, Most::TRACE];
    let base = match level {
        Level::Error => 0,
        Level::Warn => 1,
        Level::Info => 2,
        Level::Debug => 3,
        Level::Trace => 4,
    };
    let most = levels[(base + usize::from(verbose)).min(levels.len() - 1)];
    let builder = fmt().with_max_level(most).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let _already_started = match format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Starts logging for a command that talks to a node: warnings only, unless asked for more.
pub(crate) fn start_quiet(verbose: u8) {
    start(Level::Warn, Format::Text, verbose);
}
