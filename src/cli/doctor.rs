//! `taskmaster doctor`: the checks of the machine as a list, exit code 1 when one of them fails.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, Global};
use crate::config;
use crate::doctor::{Report, Status, examine};
use crate::output::{Output, Tint};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Configuration of the node to check for
    #[arg(long, value_name = "FILE", env = "TASKMASTER_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory to check, instead of the configured one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the checks.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<Exit, Failure> {
    let mut config = config::load(arguments.config.as_deref())?.config;
    if let Some(data_dir) = &arguments.data_dir {
        config.node.data_dir.clone_from(data_dir);
    }
    let report = examine(&config);
    let output = global.output();
    if output.is_json() {
        output.json(&serde_json::to_value(&report).map_err(anyhow::Error::from)?)?;
    } else {
        output.text(&render(&report, output))?;
    }
    Ok(if report.status == Status::Fail { Exit::Failed } else { Exit::Success })
}

/// One line per check, its cure below it, and a closing line.
fn render(report: &Report, output: Output) -> String {
    let mut text = String::new();
    let name_width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let (tint, mark) = match check.status {
            Status::Ok => (Tint::Good, " ok "),
            Status::Warn => (Tint::Caution, "warn"),
            Status::Fail => (Tint::Bad, "FAIL"),
        };
        text.push_str(&format!("{}  {:name_width$}  {}\n", output.tint(tint, mark), check.name, check.message));
        if let Some(fix) = &check.fix {
            text.push_str(&format!("      {:name_width$}  → {fix}\n", ""));
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    text.push_str(&match (failures, warnings) {
        (0, 0) => "\nThis machine is fit.\n".to_owned(),
        (0, _) => format!("\nA node runs here; {warnings} warning(s) above say what would make it better.\n"),
        _ => format!("\nA node cannot start here: {failures} check(s) failed.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Check;
    use crate::output::Shape;

    #[test]
    fn cures_stand_below_their_findings() {
        let check = |status, fix: Option<&str>| Check {
            name: "disk",
            status,
            message: "It is so.".to_owned(),
            fix: fix.map(str::to_owned),
        };
        let checks = vec![check(Status::Ok, None), check(Status::Fail, Some("Do this."))];
        let text = render(&Report { status: Status::Fail, checks }, Output::new(Shape::Text));
        let plain = " ok   disk  It is so.\nFAIL  disk  It is so.\n            → Do this.\n";
        assert!(text.starts_with(plain), "{text}");
        assert!(text.ends_with("1 check(s) failed.\n"));
    }
}
