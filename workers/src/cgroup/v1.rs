//! Version 1: a hierarchy per controller (or per several).

use super::discover::Found;
use super::{Base, Controller, Version, stale, write};
use std::fs;
use std::io;
use std::path::Path;

/// cpu.cfs_period_us: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Makes our directory in each hierarchy that has something wanted, and takes that off the list.
pub(super) fn open(found: &[Found], wanted: &mut Vec<Controller>, refusals: &mut Vec<String>) -> Vec<Base> {
    let mut bases: Vec<Base> = Vec::new();
    wanted.retain(|&controller| {
        let name = controller.name();
        let Some(hierarchy) =
            found.iter().find(|found| found.version == Version::V1 && found.controllers.iter().any(|c| c == name))
        else {
            refusals.push(format!("no {name} limits, for cgroup v1 has no {name} controller mounted here either"));
            return true;
        };
        if let Some(base) = bases.iter_mut().find(|base| base.dir.parent() == Some(&hierarchy.dir)) {
            base.controllers.push(controller);
            return false;
        }
        stale::clear(&hierarchy.dir);
        let dir = hierarchy.dir.join(stale::new_name());
        match make(&dir, controller) {
            Ok(()) => {
                bases.push(Base { dir, version: Version::V1, controllers: vec![controller] });
                false
            }
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                refusals.push(format!(
                    "no {name} limits, for {} cannot be used: {error} (run the worker as root, or delegate a cgroup to it)",
                    hierarchy.dir.display()
                ));
                true
            }
        }
    });
    bases
}

/// Makes the directory and sees whether limits can be set in it at all.
fn make(dir: &Path, controller: Controller) -> io::Result<()> {
    fs::create_dir(dir)?;
    let file = match controller {
        Controller::Memory => "memory.limit_in_bytes",
        Controller::Cpu => "cpu.cfs_quota_us",
    };
    fs::File::options().write(true).open(dir.join(file)).map(|_file| ())
}

/// Sets a limit: bytes of memory, or thousandths of a core.
pub(super) fn limit(dir: &Path, controller: Controller, limit: u64) -> io::Result<()> {
    match controller {
        Controller::Memory => {
            write(&dir.join("memory.limit_in_bytes"), &limit.to_string())?;
            // With swap counted in, where the kernel counts it; otherwise the limit would only move memory to swap.
            let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), limit.to_string());
            Ok(())
        }
        Controller::Cpu => {
            write(&dir.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
            write(&dir.join("cpu.cfs_quota_us"), &quota_us(limit, PERIOD_US).to_string())
        }
    }
}

/// The kernel takes no quota below a millisecond.
pub(super) fn quota_us(milli: u64, period_us: u64) -> u64 {
    (milli * period_us / 1000).max(1000)
}
