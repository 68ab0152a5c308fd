//! Signals by name.

/// `KILL`, `SEGV`, `RTMIN+2`, ...; the bare number for one without a name.
pub(super) fn name(number: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => (*name).to_owned(),
        None if (34..=64).contains(&number) => format!("RTMIN+{}", number - 34),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn signals_have_their_linux_names() {
        let names: Vec<String> =
            [libc::SIGKILL, libc::SIGSEGV, libc::SIGXCPU, libc::SIGSYS, 36, 99].map(super::name).into();
        assert_eq!(names, ["KILL", "SEGV", "XCPU", "SYS", "RTMIN+2", "99"]);
    }
}
