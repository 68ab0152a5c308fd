//! Progress on standard error: a bar on a terminal, else a line each second, nothing for short work.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between lines when standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// What has been done of a known amount.
pub(crate) struct Progress {
    shown: Shown,
    total: u64,
}

enum Shown {
    Bar(ProgressBar),
    Lines { next: Instant, label: &'static str },
    Nothing,
}

impl Progress {
    /// Of this much; `label` names the work. Nothing is shown when `quiet`.
    pub(crate) fn new(label: &'static str, total: u64, quiet: bool) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{prefix} {bar:32.cyan/dim} {percent:>3}%  {elapsed}  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(15));
            bar.set_style(style.progress_chars("━━╌"));
            bar.set_prefix(label);
            Shown::Bar(bar)
        } else {
            Shown::Lines { next: Instant::now() + LINE_INTERVAL, label }
        };
        Self { shown, total }
    }

    /// Shows how much is done, with a message; cheap enough to call often.
    pub(crate) fn set(&mut self, done: u64, message: impl FnOnce() -> String) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(message());
            }
            Shown::Lines { next, label } => {
                let now = Instant::now();
                if now >= *next {
                    *next = now + LINE_INTERVAL;
                    let percent = (done * 100).checked_div(self.total).unwrap_or(0);
                    eprintln!("{label}: {percent}%, {}", message());
                }
            }
            Shown::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
