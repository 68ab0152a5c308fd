//! Names to addresses, beside the shard.
//!
//! A look-up may stand still for as long as the resolver likes, so it has a thread of its own: on the blocking pool it would
//! hold up the log's segments, which are made there. The shard looks for the answer by a timer, since no foreign thread may
//! hold a waker of it (`docs/decisions/glommio.md`).

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use glommio::timer::sleep;

/// How often the shard looks for the answer.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Looks at this pace and, after so many, at a slower one.
const LOOKS_FAST: u32 = 50;
const LOOK_LATER_EVERY: Duration = Duration::from_millis(50);
/// Addresses that are kept of one name.
pub const ADDRESSES_MAX: usize = 64;

/// The addresses of `host`, a name or a literal address, with `port`. Sorted, at most [`ADDRESSES_MAX`].
///
/// # Errors
/// What the resolver said; it is asked once.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(literal, port)]);
    }
    let answer = Arc::new(OnceLock::new());
    let (question, told) = (host.to_owned(), Arc::clone(&answer));
    thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        let addresses = (question.as_str(), port).to_socket_addrs().map(|found| {
            let mut found: Vec<_> = found.collect();
            found.sort_unstable();
            found.dedup();
            found.truncate(ADDRESSES_MAX);
            found
        });
        // Nobody else tells it.
        let _ = told.set(addresses.map_err(|error| (error.kind(), error.to_string())));
    })?;
    let mut looks = 0;
    loop {
        if let Some(answer) = answer.get() {
            return answer.clone().map_err(|(kind, message)| io::Error::new(kind, message));
        }
        looks += 1;
        sleep(if looks < LOOKS_FAST { LOOK_EVERY } else { LOOK_LATER_EVERY }).await;
    }
}

/// Resolves the names again and again, `period` after each answer, and hands all addresses to `found` whenever they differ
/// from before. A name that cannot be resolved keeps the addresses it had, and is logged when that begins.
pub async fn resolve_periodically(names: &[(String, u16)], period: Duration, mut found: impl FnMut(Vec<SocketAddr>)) {
    let mut known: Vec<Vec<SocketAddr>> = vec![Vec::new(); names.len()];
    let mut failing = vec![false; names.len()];
    let mut told = None;
    loop {
        for (at, (host, port)) in names.iter().enumerate() {
            match resolve(host, *port).await {
                Ok(addresses) => {
                    failing[at] = false;
                    known[at] = addresses;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing[at], true) {
                        tracing::warn!("the name {host} cannot be resolved: {error}; it is tried again");
                    }
                }
            }
        }
        let mut all: Vec<_> = known.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        if told.as_ref() != Some(&all) {
            found(all.clone());
            told = Some(all);
        }
        sleep(period).await;
    }
}

#[cfg(test)]
mod tests {
    use glommio::{LocalExecutorBuilder, Placement};

    use super::*;

    #[test]
    fn names_and_literals_become_addresses_and_an_unknown_name_an_error() {
        let shard = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20).spawn(|| async {
            let literal = resolve("10.1.2.3", 7).await.unwrap();
            assert_eq!(literal, [SocketAddr::from(([10, 1, 2, 3], 7))]);
            assert_eq!(resolve("[::1]", 7).await.unwrap(), ["[::1]:7".parse::<SocketAddr>().unwrap()]);
            let local = resolve("localhost", 9).await.unwrap();
            assert!(!local.is_empty() && local.iter().all(|address| address.ip().is_loopback() && address.port() == 9));
            assert!(resolve("no.such.name.invalid", 9).await.is_err());
        });
        shard.unwrap().join().unwrap();
    }
}
