//! Where the database is and how it is used.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::Error;

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// They are not.
    Disable,
    /// They are, and the server's certificate must be valid for its name.
    Verify,
}

/// Where and how.
#[derive(Clone)]
pub struct Settings {
    pub(super) config: Config,
    pub(super) tls: TlsMode,
    pub(super) tls_ca: Option<PathBuf>,
    /// Files of the certificate that is shown, and of its key.
    pub(super) tls_shown: Option<(PathBuf, PathBuf)>,
    pub(super) statement_timeout: Duration,
    /// The address itself asks for encryption.
    asks_for_tls: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("place", &self.place()).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Settings {
    /// From a URL (`postgres://user@host:5432/database`) or pairs (`host=... user=...`), with the password from elsewhere.
    ///
    /// # Errors
    /// A sentence that does not repeat the URL.
    pub fn new(url: &str, password: Option<&str>) -> Result<Self, Error> {
        let mut config = Config::from_str(url).map_err(|error| {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::Settings(format!("is no address of a database such as \"postgres://user@host:5432/name\": {reason}"))
        })?;
        if config.get_hosts().is_empty() {
            return Err(Error::Settings("names no host".to_owned()));
        }
        if let Some(password) = password {
            config.password(password);
        }
        let asks_for_tls = config.get_ssl_mode() == SslMode::Require;
        config
            .application_name("taskmaster")
            .keepalives_idle(Duration::from_secs(30))
            .connect_timeout(Duration::from_secs(5));
        config.tcp_user_timeout(Duration::from_secs(30));
        let mut settings = Self {
            config,
            tls: TlsMode::Disable,
            tls_ca: None,
            tls_shown: None,
            statement_timeout: Duration::from_secs(30),
            asks_for_tls,
        };
        settings.set_tls(TlsMode::Disable, None);
        Ok(settings)
    }

    /// Whether a password is known.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    /// Whether the address asks for encryption (`sslmode=require`) that is not on.
    #[must_use]
    pub fn lacks_tls(&self) -> bool {
        self.asks_for_tls && self.tls == TlsMode::Disable
    }

    /// Encryption; without a file of certificates those of the system are trusted.
    pub fn set_tls(&mut self, mode: TlsMode, ca: Option<PathBuf>) {
        (self.tls, self.tls_ca) = (mode, ca);
        self.config.ssl_mode(match mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Verify => SslMode::Require,
        });
    }

    /// The files of a certificate to show to the server, with those up to an authority that it trusts, and of its key; for
    /// [`TlsMode::Verify`].
    pub fn show_certificate(&mut self, certificate: PathBuf, key: PathBuf) {
        self.tls_shown = Some((certificate, key));
    }

    /// Longest time to connect, and for any statement.
    pub fn set_timeouts(&mut self, connect: Duration, statement: Duration) {
        self.config.connect_timeout(connect);
        self.statement_timeout = statement;
    }

    /// Hosts, ports and the database's name: for people, without secrets.
    #[must_use]
    pub fn place(&self) -> String {
        let ports = self.config.get_ports();
        let host = |(index, host): (usize, &Host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        };
        let hosts: Vec<String> = self.config.get_hosts().iter().enumerate().map(host).collect();
        let name = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("{}/{name}", hosts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_settings_holds_the_password() {
        let settings = Settings::new("postgres://me:s3cret@db.example:5433/tasks", None).unwrap();
        assert!(settings.has_password());
        assert_eq!(settings.place(), "db.example:5433/tasks");
        assert!(!format!("{settings:?}").contains("s3cret"));
        for bad in
            ["postgres://me:s3cret@db.example:port/tasks", "host=s3cret password", "postgres://", "dbname=s3cret"]
        {
            let error = Settings::new(bad, None).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn encryption_that_an_address_asks_for_must_be_on() {
        let mut settings = Settings::new("postgres://me@db.example/tasks?sslmode=require", None).unwrap();
        assert!(settings.lacks_tls());
        settings.set_tls(TlsMode::Verify, None);
        assert!(!settings.lacks_tls());
        assert!(!Settings::new("postgres://me@db.example/tasks", None).unwrap().lacks_tls());
    }
}
