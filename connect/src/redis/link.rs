//! One connection to whatever the address stands for. With RESP3 the server says when a value that was read changes, and the library
//! keeps values on this side until then; a server that has no RESP3 is used without.

use std::num::NonZeroUsize;

use redis::aio::MultiplexedConnection;
use redis::caching::{CacheConfig, CacheStatistics};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, FromRedisValue, RedisError, RedisResult, TlsCertificates,
    TlsMode,
};

use super::settings::{Form, Settings};
use crate::trust;

/// What can go wrong. Nothing is lost by any of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The server cannot be used, or refuses.
    #[error("{place}: {message}")]
    Server {
        /// Where it is.
        place: String,
        /// What it, or the library, said.
        message: String,
    },
    /// No answer came in time.
    #[error("{place} did not answer within {ms} ms")]
    Late {
        /// Where it is.
        place: String,
        /// How long was waited.
        ms: u128,
    },
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Link {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    /// Connects, and sees that commands are answered.
    ///
    /// # Errors
    /// When that does not succeed within the time for it.
    pub(super) async fn connect(settings: &Settings) -> Result<Self, Error> {
        let tried = async {
            let first = Self::connect_with(settings, true).await;
            match first {
                // It answered, and not to our liking: it may be of an age before RESP3.
                Err(error) if !error.is_io_error() => Self::connect_with(settings, false).await.map_err(|_| error),
                other => other,
            }
        };
        match tokio::time::timeout(settings.connect_timeout, tried).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(server_error(settings, &error)),
            Err(_) => Err(Error::Late { place: settings.place(), ms: settings.connect_timeout.as_millis() }),
        }
    }

    async fn connect_with(settings: &Settings, has_pushes: bool) -> RedisResult<Self> {
        let unusable =
            |error: Error| RedisError::from((redis::ErrorKind::InvalidClientConfig, "unusable", error.to_string()));
        let cache = NonZeroUsize::new(settings.local_max).filter(|_| has_pushes);
        let cache = cache.map(|size| CacheConfig::new().set_size(size).set_default_client_ttl(settings.ttl));
        let certificates = certificates(settings);
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.connect_timeout));
        if let Some(cache) = cache {
            config = config.set_cache_config(cache);
        }
        let servers = settings.servers(has_pushes).map_err(unusable)?;
        let client = match &settings.form {
            Form::Single => {
                let server = servers.into_iter().next().expect("one host at least");
                match certificates {
                    Some(certificates) => Client::build_with_tls(server, certificates)?,
                    None => Client::open(server)?,
                }
            }
            Form::Cluster => {
                let mut builder = ClusterClient::builder(servers)
                    .use_protocol(Settings::protocol(has_pushes))
                    .connection_timeout(settings.connect_timeout)
                    .response_timeout(settings.connect_timeout)
                    .retries(1);
                if settings.is_encrypted {
                    builder = builder.tls(TlsMode::Secure);
                }
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                if let Some(cache) = cache {
                    builder = builder.cache_config(cache);
                }
                return Self::Cluster(builder.build()?.get_async_connection().await?).greeted().await;
            }
            Form::Sentinel(master) => sentinels(settings, master, certificates, has_pushes)?.async_get_client().await?,
        };
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        Self::Server(connection).greeted().await
    }

    async fn greeted(self) -> RedisResult<Self> {
        self.ask::<()>(&redis::cmd("PING")).await?;
        Ok(self)
    }

    /// One command. Those that are asked at once travel together.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self.clone() {
            Self::Server(mut connection) => command.query_async(&mut connection).await,
            Self::Cluster(mut connection) => command.query_async(&mut connection).await,
        }
    }

    /// One command to one server, which of a cluster is any.
    pub(super) async fn ask_one<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let Self::Cluster(mut connection) = self.clone() else { return self.ask(command).await };
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        Ok(redis::from_redis_value(connection.route_command(command.clone(), any).await?)?)
    }

    /// Answers that took no round trip.
    pub(super) fn local_answers(&self) -> usize {
        let statistics = match self {
            Self::Server(connection) => connection.get_cache_statistics(),
            Self::Cluster(connection) => connection.get_cache_statistics(),
        };
        statistics.map_or(0, |statistics: CacheStatistics| statistics.hit)
    }
}

/// Whom connections trust and what they show, if that is not what they do anyway.
fn certificates(settings: &Settings) -> Option<TlsCertificates> {
    let shown = settings.tls_shown.clone();
    let client_tls = shown.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    let root_cert = settings.tls_ca.clone();
    (client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates { client_tls, root_cert })
}

/// Who asks sentinels for the server.
fn sentinels(
    settings: &Settings,
    master: &str,
    certificates: Option<TlsCertificates>,
    has_pushes: bool,
) -> RedisResult<SentinelClient> {
    let mut builder = SentinelClientBuilder::new(settings.addresses(), master, SentinelServerType::Master)?
        .set_client_to_redis_db(settings.database)
        .set_client_to_redis_protocol(Settings::protocol(has_pushes));
    if settings.is_encrypted {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(user) = &settings.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &settings.password {
        builder = builder.set_client_to_redis_password(password);
    }
    let (user, password) = &settings.sentinel_login;
    if let Some(user) = user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if let Some(certificates) = certificates {
        if settings.encrypts_hosts() {
            builder = builder.set_client_to_sentinel_certificates(certificates.clone());
        }
        builder = builder.set_client_to_redis_certificates(certificates);
    }
    builder.build()
}

/// What the library says, with the place.
pub(super) fn server_error(settings: &Settings, error: &RedisError) -> Error {
    let message = trust::explained(error.to_string(), "redis", settings.tls_shown.is_some());
    Error::Server { place: settings.place(), message }
}
