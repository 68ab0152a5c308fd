//! Where this process stands in the hierarchies of cgroups.

use super::Version;
use std::fs;
use std::path::{Path, PathBuf};

/// A hierarchy, and this process's own directory in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) version: Version,
    /// For version 1: the controllers mounted here.
    pub(super) controllers: Vec<String>,
    pub(super) dir: PathBuf,
}

/// The hierarchies that this process is in and which are mounted.
pub(super) fn own() -> Vec<Found> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// See proc_pid_mountinfo(5) and cgroups(7).
fn parse(mountinfo: &str, own: &str) -> Vec<Found> {
    mountinfo.lines().filter_map(|line| parse_mount(line, own)).collect()
}

fn parse_mount(line: &str, own: &str) -> Option<Found> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
    let mut fs = fs.split(' ');
    let version = match fs.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let options: Vec<&str> = fs.nth(1)?.split(',').collect();
    let (controllers, path) = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let names: Vec<&str> = fields.next()?.split(',').filter(|name| !name.is_empty()).collect();
        let here = match version {
            Version::V1 => !names.is_empty() && names.iter().all(|name| options.contains(name)),
            Version::V2 => names.is_empty(),
        };
        here.then_some((names, fields.next()?))
    })?;
    // In a container the mount may show only a part of the hierarchy, from `root` on.
    let below = Path::new(path).strip_prefix(&root).unwrap_or(Path::new(""));
    let dir = Path::new(&point).join(below);
    Some(Found { version, controllers: controllers.into_iter().map(str::to_owned).collect(), dir })
}

/// Mount paths have white space and backslashes as three octal digits.
fn unescape(path: &str) -> String {
    let mut parts = path.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(version: Version, controllers: &[&str], dir: &str) -> Found {
        let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        Found { version, controllers, dir: PathBuf::from(dir) }
    }

    #[test]
    fn a_unified_host_is_understood() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
                      31 23 0:27 / /proc rw - proc proc rw\n";
        let own = "0::/user.slice/user-1000.slice/worker.service\n";
        let dir = "/sys/fs/cgroup/user.slice/user-1000.slice/worker.service";
        assert_eq!(parse(mounts, own), [found(Version::V2, &[], dir)]);
    }

    #[test]
    fn a_hybrid_host_is_understood_whatever_the_order_of_its_controllers() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "9:name=systemd:/\n4:memory:/a/b\n2:cpuacct,cpu:/\n0::/\n";
        assert_eq!(
            parse(mounts, own),
            [
                found(Version::V1, &["cpuacct", "cpu"], "/sys/fs/cgroup/cpu,cpuacct/"),
                found(Version::V1, &["memory"], "/sys/fs/cgroup/memory/a/b"),
                found(Version::V1, &["name=systemd"], "/sys/fs/cgroup/systemd/"),
                found(Version::V2, &[], "/sys/fs/cgroup/unified/"),
            ]
        );
    }

    #[test]
    fn a_container_sees_its_part_of_the_hierarchy() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/my\\040memory ro - cgroup cgroup rw,memory\n";
        let part = |own| parse(mounts, own);
        assert_eq!(part("4:memory:/docker/abc/x\n"), [found(Version::V1, &["memory"], "/sys/fs/cgroup/my memory/x")]);
        assert_eq!(part("4:memory:/elsewhere\n"), [found(Version::V1, &["memory"], "/sys/fs/cgroup/my memory/")]);
        assert_eq!(part("nonsense\n"), []);
    }
}
