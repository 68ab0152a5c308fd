//! Every section and key: type, default and range. `taskmaster.toml` at the root of the repository documents them for
//! users and is checked against this file by a test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;

use super::cluster::{address_list, host, host_and_port, odd, short_name};
use super::events::Events;
use super::secret::{DatabaseUrl, Secret};
use super::setting::{Raw, Setting};
use super::streams::Stream;
use super::value::{ByteSize, Format, Interval, Level, Memory, ServerTls, ShardPorts};
use super::{Origin, Problem};

/// Most shards of one node.
const SHARDS_MAX: u16 = 1_024;
/// Most partitions of a cluster.
const PARTITIONS_MAX: u16 = taskmaster_protocol::limits::PARTITIONS_MAX;
/// Longest retention: 32 bits of milliseconds.
const RETENTION_MAX: Interval = Interval::ms(49 * 86_400_000);
/// Longest retention of history in a database.
const HISTORY_MAX: Interval = Interval::ms(3_650 * 86_400_000);
/// Longest time for a process to end by itself.
const GRACE_MAX: Interval = Interval::ms(3_600_000);

/// The section whose presence makes a node one of a cluster.
pub(crate) const CLUSTER: &str = "cluster";
/// Longest time that a missing node's replicas are left to it.
const REPLACE_AFTER_MAX: Interval = Interval::ms(7 * 86_400_000);

macro_rules! sections {
    ($($(#[$doc:meta])* $section:ident: $name:ident {
        $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr, $check:expr;)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub(crate) struct $name { $($(#[$key_doc])* pub(crate) $key: $type,)* }

            impl Default for $name {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        /// The configuration of a node.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Config {
            $($(#[$doc])* pub(crate) $section: $name,)*
            /// Whether the section `cluster` is there, empty or not: only then is the node one of a cluster.
            pub(crate) clustered: bool,
            /// Streams whose messages become tasks.
            pub(crate) streams: Vec<Stream>,
            /// Where is told what happens to tasks.
            pub(crate) events: Option<Events>,
        }

        impl Config {
            /// Names of the sections.
            pub(crate) const SECTIONS: &'static [&'static str] = &[$(stringify!($section),)*];

            /// Keys of a section, if it exists.
            pub(crate) fn keys(section: &str) -> Option<&'static [&'static str]> {
                match section {
                    $(stringify!($section) => Some(&[$(stringify!($key),)*]),)*
                    _ => None,
                }
            }

            /// Sets one value after checking its shape and range.
            ///
            /// # Errors
            /// What is wrong and what would be right, continuing the key's name.
            pub(crate) fn set(&mut self, section: &str, key: &str, raw: &Raw) -> Result<(), String> {
                self.meet(section);
                match section {
                    $(stringify!($section) => match key {
                        $(stringify!($key) => {
                            let value = <$type as Setting>::read(raw)?;
                            let check: fn(&$type) -> Result<(), String> = $check;
                            check(&value)?;
                            self.$section.$key = value;
                            Ok(())
                        })*
                        _ => Err("is unknown".to_owned()),
                    },)*
                    _ => Err("is in an unknown section".to_owned()),
                }
            }

            /// Section, key and value as TOML, in the order of this file.
            pub(crate) fn shown(&self) -> Vec<(&'static str, &'static str, String)> {
                vec![$($((stringify!($section), stringify!($key), self.$section.$key.show()),)*)*]
            }

            /// As one JSON object of sections; sizes in bytes, durations in milliseconds. `cluster` is null where there is none.
            pub(crate) fn json(&self) -> Value {
                let mut root = serde_json::Map::new();
                $({
                    let mut section = serde_json::Map::new();
                    $(section.insert(stringify!($key).to_owned(), self.$section.$key.json());)*
                    root.insert(stringify!($section).to_owned(), Value::Object(section));
                })*
                if !self.clustered {
                    root.insert(CLUSTER.to_owned(), Value::Null);
                }
                root.insert("streams".to_owned(), self.streams_json());
                root.insert("events".to_owned(), self.events.as_ref().map_or(Value::Null, Events::json));
                Value::Object(root)
            }
        }
    };
}

sections! {
    /// The node itself.
    node: Node {
        /// Where the log, snapshots and identity live.
        data_dir: PathBuf = PathBuf::from("taskmaster-data"), any;
        /// Name shown to operators.
        name: String = "taskmaster".to_owned(), |name| name_like(name);
        /// Shards, one pinned thread each; 0 means one per core.
        shards: u16 = 0, |&value| between(value, 0, SHARDS_MAX);
        /// Partitions, fixed when the data directory is created.
        partitions: u16 = 64, |&value| between(value, 1, PARTITIONS_MAX);
    }
    /// Where clients connect.
    listen: Listen {
        /// Address shared by all shards; port 0 takes any free one.
        address: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7700)), any;
        /// Ports of the single shards.
        shard_ports: ShardPorts = ShardPorts::Follow, any;
    }
    /// The cluster that the node is one of; only where the section is there.
    cluster: Cluster {
        /// Name of the cluster: nodes of another name are not listened to.
        name: String = "taskmaster".to_owned(), |name| name_like(name);
        /// Name of this node; empty for the name of its host. No two nodes have the same.
        node_name: String = String::new(), |name| empty_or(name, short_name);
        /// Where it stands: replicas are spread over zones.
        zone: String = String::new(), |zone| empty_or(zone, short_name);
        /// Where other nodes connect: TCP of shard n on this port plus n, UDP on this port.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7_800)), any;
        /// Name or address by which other nodes and clients reach this one; empty where it can be told from elsewhere.
        advertise: String = String::new(), |name| empty_or(name, host);
        /// Peer addresses of some nodes, to begin with.
        seeds: Vec<String> = Vec::new(), |seeds| address_list(seeds);
        /// A name whose addresses are those of nodes.
        dns: String = String::new(), |name| empty_or(name, |name| host(name).or_else(|_| host_and_port(name)));
        /// How often the name is resolved.
        dns_interval: Interval = Interval::ms(10_000), |&value| interval_between(value, Interval::ms(1_000), Interval::ms(3_600_000));
        /// Replicas of each partition that a new cluster starts with.
        replication: u16 = 3, |&value| between(value, 1, 5).and_then(|()| odd(value));
        /// How long a node may be missing before its replicas are made anew elsewhere.
        replace_after: Interval = Interval::ms(300_000), |&value| interval_between(value, Interval::ms(5_000), REPLACE_AFTER_MAX);
        /// Most partitions that move at once.
        moves_max: u16 = 16, |&value| between(value, 1, 256);
        /// Most bytes of replicas' states that a node sends to others per second.
        move_rate: ByteSize = ByteSize::mib(64), |&value| size_between(value, ByteSize::mib(1), ByteSize::gib(64));
        /// Certificates of who may connect to nodes; with the other two, nodes speak TLS with each other.
        tls_ca: Option<PathBuf> = None, any;
        /// This node's certificate.
        tls_cert: Option<PathBuf> = None, any;
        /// Its key.
        tls_key: Option<PathBuf> = None, any;
    }
    /// Bounds: what is beyond them is refused, never queued without end.
    limits: Limits {
        /// Memory for tasks, payloads and results.
        memory: Memory = Memory::Auto, |value| match value {
            Memory::Auto => Ok(()),
            Memory::Bytes(size) => size_between(*size, ByteSize::mib(16), ByteSize::gib(16 << 10)),
        };
        /// Most client connections of the node.
        max_connections: u32 = 4_096, |&value| between(value, 1, 1_000_000);
    }
    /// Defaults for queues.
    queues: Queues {
        /// Whether a queue comes into being with its first task.
        auto_create: bool = true, any;
        /// How long finished tasks and their results are kept.
        retention: Interval = Interval::ms(3_600_000), |&value| interval_between(value, Interval::ms(1), RETENTION_MAX);
        /// Most finished tasks kept by a node, whatever their retention: the oldest go first.
        finished_max: u64 = 1_000_000, |&value| between(value, 0, 1_000_000_000);
    }
    /// The write-ahead log.
    wal: Wal {
        /// Size of one file of the log.
        segment_size: ByteSize = ByteSize::mib(64), |&value| {
            size_between(value, ByteSize::mib(32), ByteSize::gib(4))?;
            if value.0.is_multiple_of(1 << 20) { Ok(()) } else { Err("must be a multiple of 1MiB".to_owned()) }
        };
        /// Files prepared ahead of need, per shard.
        segments_ahead: u16 = 2, |&value| between(value, 1, 64);
        /// Most writes under way at once, per shard.
        inflight_writes: u16 = 3, |&value| between(value, 1, 64);
        /// Log written since the last snapshot after which a new one is taken, per shard.
        snapshot_after: ByteSize = ByteSize::gib(1), |&value| size_between(value, ByteSize::mib(64), ByteSize::gib(1 << 10));
        /// Whether the log says when attempts began, for `taskmaster replay --data-dir`.
        starts: bool = false, any;
    }
    /// The database to which finished tasks are checkpointed; only where a URL is given. The same on all nodes.
    postgres: Postgres {
        /// Where it is; empty for none.
        url: DatabaseUrl = DatabaseUrl::default(), any;
        /// A file with the password.
        password_file: Option<PathBuf> = None, any;
        /// The password, from the environment.
        password: Secret = Secret::default(), any;
        /// Encryption.
        tls: ServerTls = ServerTls::Disable, any;
        /// Authorities that are trusted; empty for those of the system.
        tls_ca: Option<PathBuf> = None, any;
        /// The certificate that is shown, with those up to an authority; empty for none.
        tls_cert: Option<PathBuf> = None, any;
        /// Its key.
        tls_key: Option<PathBuf> = None, any;
        /// Connections of the node that write: more than one help where the database has processors of its own.
        connections: u16 = 1, |&value| between(value, 1, 64);
        /// Longest wait for a connection.
        connect_timeout: Interval = Interval::ms(5_000), |&value| interval_between(value, Interval::ms(100), Interval::ms(60_000));
        /// Longest time of a statement.
        statement_timeout: Interval = Interval::ms(30_000), |&value| interval_between(value, Interval::ms(1_000), Interval::ms(3_600_000));
        /// How often finished tasks are sent, unless many wait.
        interval: Interval = Interval::ms(100), |&value| interval_between(value, Interval::ms(1), Interval::ms(60_000));
        /// Most tasks of one batch of one partition.
        batch_tasks: u32 = 4_096, |&value| between(value, 1, 65_536);
        /// Bytes of payloads and results at which a batch is full.
        batch_size: ByteSize = ByteSize::mib(1), |&value| size_between(value, ByteSize(1), ByteSize::mib(64));
        /// Finished tasks that wait for their checkpoint at most, over all partitions.
        waiting_max: u64 = 4_000_000, |&value| between(value, 1, 1_000_000_000);
        /// The same by size.
        waiting_size: ByteSize = ByteSize::mib(512), |&value| size_between(value, ByteSize::mib(1), ByteSize::gib(1 << 10));
        /// What of those that wait may lie on disk, in the data directory, beyond what fits into memory; 0: nothing.
        spill_size: ByteSize = ByteSize::gib(4), |&value| size_between(value, ByteSize(0), ByteSize::gib(1 << 10));
        /// How long checkpointed tasks stay in memory at most.
        kept: Interval = RETENTION_MAX, |&value| interval_between(value, Interval::ms(0), RETENTION_MAX);
        /// How long history is kept in the database, by whole days; 0: for ever.
        retention: Interval = Interval::ms(0), |&value| interval_between(value, Interval::ms(0), HISTORY_MAX);
    }
    /// The server that remembers results of memoised tasks; only where a URL is given.
    redis: Redis {
        /// Where it is; empty for none.
        url: DatabaseUrl = DatabaseUrl::default(), any;
        /// A file with the password.
        password_file: Option<PathBuf> = None, any;
        /// The password, from the environment.
        password: Secret = Secret::default(), any;
        /// Authorities that are trusted; empty for those of the system.
        tls_ca: Option<PathBuf> = None, any;
        /// The certificate that is shown, with those up to an authority; empty for none.
        tls_cert: Option<PathBuf> = None, any;
        /// Its key.
        tls_key: Option<PathBuf> = None, any;
        /// The user at sentinels, which have users of their own; empty for their default.
        sentinel_user: String = String::new(), any;
        /// A file with the password at sentinels.
        sentinel_password_file: Option<PathBuf> = None, any;
        /// The password at sentinels, from the environment.
        sentinel_password: Secret = Secret::default(), any;
        /// Encryption of connections to sentinels, where those to servers are encrypted.
        sentinel_tls: ServerTls = ServerTls::Verify, any;
        /// What keys begin with.
        prefix: String = "taskmaster".to_owned(), |prefix| name_like(prefix);
        /// Longest wait for what is remembered.
        timeout: Interval = Interval::ms(20), |&value| interval_between(value, Interval::ms(1), Interval::ms(1_000));
        /// Longest wait for a connection.
        connect_timeout: Interval = Interval::ms(1_000), |&value| interval_between(value, Interval::ms(10), Interval::ms(60_000));
        /// How long results are remembered there.
        ttl: Interval = Interval::ms(86_400_000), |&value| interval_between(value, Interval::ms(1_000), HISTORY_MAX);
        /// Longest result that is.
        max_result: ByteSize = ByteSize(256 << 10), |&value| size_between(value, ByteSize(1), ByteSize::mib(1));
        /// Whether what is long of ended tasks is kept there once it was read from the database.
        history: bool = false, any;
        /// Room for values on this side, while the server vouches for them; 0 for none.
        local_size: ByteSize = ByteSize::mib(16), |&value| size_between(value, ByteSize(0), ByteSize::gib(4));
    }
    /// Workers inside the node's process (`dev` and `run`).
    workers: Workers {
        /// Most tasks at once; 0 means twice the cores.
        concurrency: u32 = 0, |&value| between(value, 0, 100_000);
        /// Whether tasks of kind `exec` may run any command as this user.
        exec: bool = true, any;
        /// How long a process has between SIGTERM and SIGKILL.
        grace: Interval = Interval::ms(5_000), |&value| interval_between(value, Interval::ms(0), GRACE_MAX);
        /// Queues they serve.
        queues: Vec<String> = vec!["default".to_owned()], |queues| queues.iter().try_for_each(|queue| name_like(queue));
    }
    /// Log lines, written to standard error.
    log: Log {
        /// Least urgent lines.
        level: Level = Level::Info, any;
        /// Shape of lines.
        format: Format = Format::Text, any;
    }
}

impl Config {
    /// Checks what concerns several values at once.
    pub(crate) fn check_together(&self, problems: &mut Vec<Problem>) {
        if self.node.shards > self.node.partitions {
            problems.push(Problem::global(format!(
                "node.shards is {}, but must be at most node.partitions ({}): a shard without a partition has no work",
                self.node.shards, self.node.partitions
            )));
        }
        if self.wal.snapshot_after < self.wal.segment_size {
            problems.push(Problem::global(format!(
                "wal.snapshot_after is {}, but must be at least wal.segment_size ({})",
                self.wal.snapshot_after, self.wal.segment_size
            )));
        }
        let last_port = u64::from(self.listen.address.port()) + u64::try_from(self.shard_count()).unwrap_or(u64::MAX);
        if self.listen.shard_ports == ShardPorts::Follow && self.listen.address.port() != 0 && last_port > 65_535 {
            problems.push(Problem::global(format!(
                "listen.address has port {}, which leaves no ports for the shards above it: take a lower one, or set \
                 listen.shard_ports to \"ephemeral\"",
                self.listen.address.port()
            )));
        }
        if self.redis.history && !(self.redis.is_configured() && self.postgres.is_configured()) {
            problems.push(Problem::global(
                "redis.history keeps in Redis what was read from PostgreSQL: it needs redis.url and postgres.url"
                    .to_owned(),
            ));
        }
        if self.clustered {
            self.check_cluster(problems);
        }
    }

    /// Notes that the file or the environment has something in this section.
    pub(crate) fn meet(&mut self, section: &str) {
        self.clustered |= section == CLUSTER;
    }

    /// As TOML, with the origin of what is not a default; without `[cluster]` where there is none.
    pub(crate) fn to_toml(&self, origin: impl Fn(&str) -> Origin) -> String {
        let mut text = String::new();
        let mut current = "";
        for (section, key, value) in self.shown() {
            if section == CLUSTER && !self.clustered {
                continue;
            }
            if section != current {
                let gap = if current.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{section}]\n"));
                current = section;
            }
            let note = match origin(&format!("{section}.{key}")) {
                Origin::Default => String::new(),
                Origin::File(line) => format!("  # line {line}"),
                Origin::Environment => "  # environment".to_owned(),
            };
            text.push_str(&format!("{key} = {value}{note}\n"));
        }
        for stream in &self.streams {
            text.push_str(&format!("\n{}", stream.to_toml()));
        }
        if let Some(events) = &self.events {
            text.push_str(&format!("\n{}", events.to_toml()));
        }
        text
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where checks stand")]
fn any<T>(_value: &T) -> Result<(), String> {
    Ok(())
}

/// Empty, or what the check says.
fn empty_or(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { check(text) }
}

fn between<T: PartialOrd + std::fmt::Display>(value: T, least: T, most: T) -> Result<(), String> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(format!("is {value}, but must be between {least} and {most}"))
}

fn size_between(value: ByteSize, least: ByteSize, most: ByteSize) -> Result<(), String> {
    between(value, least, most)
}

fn interval_between(value: Interval, least: Interval, most: Interval) -> Result<(), String> {
    between(value, least, most)
}

/// Names: 1 to 128 bytes without blanks or control characters.
pub(super) fn name_like(name: &str) -> Result<(), String> {
    let most = taskmaster_protocol::limits::NAME_BYTES_MAX;
    if name.is_empty() || name.len() > most {
        return Err(format!("has a name of {} bytes, but a name has 1 to {most}", name.len()));
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("has the name {name:?}, but a name has no blanks or control characters"));
    }
    Ok(())
}
