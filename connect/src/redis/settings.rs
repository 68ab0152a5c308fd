//! Where the server, the cluster or the sentinels are, and how they are used.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use super::Error;

/// The port where none is given, of servers and of sentinels.
const PORT: u16 = 6_379;
const SENTINEL_PORT: u16 = 26_379;

/// What is at the address.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// One server.
    Single,
    /// Some nodes of a cluster, which know the others.
    Cluster,
    /// Sentinels, which know the master of this name.
    Sentinel(String),
}

/// Where and how.
#[derive(Clone)]
pub struct Settings {
    pub(super) form: Form,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) is_encrypted: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    /// Certificates that are trusted (PEM) instead of the system's.
    pub tls_ca: Option<Vec<u8>>,
    /// The certificate that is shown to servers and sentinels, with those up to an authority that they trust, and its key (PEM).
    pub tls_shown: Option<(Vec<u8>, Vec<u8>)>,
    /// How one logs in to sentinels, which know nothing of the servers' users: user and password.
    pub sentinel_login: (Option<String>, Option<String>),
    /// Whether connections to sentinels are encrypted where those to servers are.
    pub encrypts_sentinels: bool,
    /// What keys begin with.
    pub prefix: String,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// How long a result is kept there.
    pub ttl: Duration,
    /// Values kept on this side while the server vouches for them; 0 for none.
    pub local_max: usize,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("place", &self.place()).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn refuse<T>(what: &str) -> Result<T, Error> {
    Err(Error::Settings(format!(
        "{what}: write redis://host:6379, redis+cluster://host:7000,host:7001 or redis+sentinel://host:26379,host:26379/master, with \
         rediss in the place of redis for TLS"
    )))
}

/// Text of a URL with its `%XX` resolved.
fn plain(text: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte == b'%' {
            let digits = rest.split_first_chunk::<2>().and_then(|(digits, behind)| {
                rest = behind;
                u8::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
            });
            let Some(byte) = digits else { return refuse("has a % that two digits do not follow") };
            bytes.push(byte);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).or_else(|_| refuse("is no UTF-8"))
}

/// A host with its port, such as `host`, `host:6379` or `[::1]:6379`.
fn host(text: &str, port: u16) -> Result<(String, u16), Error> {
    let (name, given) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, behind)) => (name, behind.strip_prefix(':')),
        None => text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    let port = given.map_or(Some(port), |given| given.parse().ok());
    match port {
        Some(port) if !name.is_empty() => Ok((name.to_owned(), port)),
        _ => refuse("names no host, or a port that is no number"),
    }
}

impl Settings {
    /// From a URL, with the password from elsewhere.
    ///
    /// # Errors
    /// A sentence that does not repeat the URL.
    pub fn new(url: &str, password: Option<&str>) -> Result<Self, Error> {
        let Some((scheme, rest)) = url.split_once("://") else { return refuse("is no URL") };
        let (base, form) = scheme.split_once('+').unwrap_or((scheme, ""));
        let is_encrypted = match base {
            "redis" => false,
            "rediss" => true,
            _ => return refuse("has another scheme"),
        };
        let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (user, own_password) = user.split_once(':').unwrap_or((user, ""));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (form, database) = match form {
            "" => (Form::Single, path),
            "cluster" => (Form::Cluster, path),
            "sentinel" => {
                let (master, database) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return refuse("names no master");
                }
                (Form::Sentinel(plain(master)?), database)
            }
            _ => return refuse("has another scheme"),
        };
        let Ok(database) = (if database.is_empty() { Ok(0) } else { database.parse() }) else {
            return refuse("has a database that is no number");
        };
        let port = if matches!(form, Form::Sentinel(_)) { SENTINEL_PORT } else { PORT };
        let hosts = hosts.split(',').map(|text| host(text, port)).collect::<Result<Vec<_>, _>>()?;
        if form == Form::Single && hosts.len() > 1 {
            return refuse("names several hosts that are neither a cluster nor sentinels");
        }
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            form,
            hosts,
            is_encrypted,
            user: filled(plain(user)?),
            password: password.map(str::to_owned).or(filled(plain(own_password)?)),
            database,
            tls_ca: None,
            tls_shown: None,
            sentinel_login: (None, None),
            encrypts_sentinels: true,
            prefix: "taskmaster".to_owned(),
            timeout: Duration::from_millis(20),
            connect_timeout: Duration::from_secs(1),
            ttl: Duration::from_secs(86_400),
            local_max: 0,
        })
    }

    /// Where it is: for people, without secrets.
    #[must_use]
    pub fn place(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(|(name, port)| format!("{name}:{port}")).collect();
        let hosts = hosts.join(",");
        match &self.form {
            Form::Single => hosts,
            Form::Cluster => format!("the cluster of {hosts}"),
            Form::Sentinel(master) => format!("{master}, as {hosts} know it"),
        }
    }

    /// Whether connections to servers are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Whether connections are encrypted, or need not be.
    pub(super) fn is_private(&self) -> bool {
        let is_local =
            |name: &str| name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        self.encrypts_hosts() || self.hosts.iter().all(|(name, _)| is_local(name))
    }

    pub(super) fn protocol(has_pushes: bool) -> ProtocolVersion {
        if has_pushes { ProtocolVersion::RESP3 } else { ProtocolVersion::RESP2 }
    }

    /// How one logs in to a server.
    pub(super) fn login(&self, has_pushes: bool) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default().set_db(self.database).set_protocol(Self::protocol(has_pushes));
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        login
    }

    /// Whether connections to the hosts, which may be sentinels, are encrypted.
    pub(super) fn encrypts_hosts(&self) -> bool {
        self.is_encrypted && (self.encrypts_sentinels || !matches!(self.form, Form::Sentinel(_)))
    }

    /// The addresses of the hosts.
    pub(super) fn addresses(&self) -> impl Iterator<Item = ConnectionAddr> + '_ {
        self.hosts.iter().map(|(host, port)| match self.encrypts_hosts() {
            true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host.clone(), *port),
        })
    }

    /// The hosts as the library wants them.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn servers(&self, has_pushes: bool) -> Result<Vec<ConnectionInfo>, Error> {
        let server = |address: ConnectionAddr| {
            let info = address.into_connection_info().map_err(|error| Error::Settings(error.to_string()))?;
            Ok(info.set_redis_settings(self.login(has_pushes)))
        };
        self.addresses().map(server).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_all_forms_are_read_and_no_text_of_them_holds_the_password() {
        for (url, place) in [
            ("redis://cache", "cache:6379"),
            ("redis://me:s3c%40ret@cache.example:6380/2", "cache.example:6380"),
            ("redis://[::1]:7", "::1:7"),
            ("rediss+cluster://:s3cret@a:7000,b:7001", "the cluster of a:7000,b:7001"),
            ("redis+sentinel://me:s3cret@a,b:5/prime/3", "prime, as a:26379,b:5 know it"),
        ] {
            let settings = Settings::new(url, None).unwrap();
            assert_eq!(settings.place(), place);
            assert!(!format!("{settings:?}").contains("s3c"), "{settings:?}");
        }
        let settings = Settings::new("redis://me:s3c%40ret@cache/2", None).unwrap();
        assert_eq!((settings.password.as_deref(), settings.user.as_deref()), (Some("s3c@ret"), Some("me")));
        assert_eq!(Settings::new("redis://me:old@cache", Some("new")).unwrap().password.as_deref(), Some("new"));
    }

    #[test]
    fn other_urls_are_refused_without_repeating_them() {
        for url in [
            "cache",
            "http://:s3cret@cache",
            "redis://:s3cret@a,b",
            "redis://:s3cret@a:port",
            "redis+sentinel://:s3cret@a",
            "redis+ring://:s3cret@a",
            "redis://:s3cret@",
            "redis://:s3cret%@a",
            "redis://:s3cret@a/x",
        ] {
            let error = Settings::new(url, None).unwrap_err();
            assert!(error.to_string().contains("redis+cluster://"), "{error}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }
}
