//! One request: signed anew for each try, and tried again while what failed may pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusty_s3::Method;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::{Error, Settings};
use crate::backoff::Backoff;
use crate::trust;

/// How often a request is made before it is given up: some 12 s of waits.
const TRIES_MAX: u32 = 8;
/// How long an address is valid that was signed for a request.
pub(super) const SIGNED_FOR: Duration = Duration::from_secs(900);
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Until an answer begins. A server that puts an upload together works meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// For one part, either way.
const BODY_MAX: Duration = Duration::from_secs(180);
/// Most bytes of an answer that is no part of a file.
const TEXT_MAX: u64 = 16 << 20;
/// Longest sleep that does not look whether an end is asked for.
const NAP: Duration = Duration::from_millis(50);

/// What is asked.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// The address, signed now.
    pub(super) sign: &'a dyn Fn() -> String,
    pub(super) body: &'a [u8],
    /// Where the wanted bytes of an object begin, and how many they are.
    pub(super) range: Option<(u64, usize)>,
    /// An answer that begins as if all were well may still be an error.
    pub(super) answers_late: bool,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, sign: &'a dyn Fn() -> String) -> Self {
        Self { method, sign, body: &[], range: None, answers_late: false }
    }
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) etag: Option<String>,
    pub(super) region: Option<String>,
    pub(super) date: Option<String>,
    pub(super) is_error: bool,
}

impl Answer {
    /// The content of the first element of this name.
    pub(super) fn element(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.body);
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(content, _)| content.to_owned())
    }

    /// Whether another try may have more luck.
    fn may_pass(&self) -> bool {
        let code = self.element("Code").unwrap_or_default();
        let passing = ["InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted"];
        matches!(self.status, 408 | 429 | 500 | 502 | 503 | 504) || passing.contains(&code.as_str())
    }
}

/// Makes requests to one server.
pub(super) struct Sender {
    agent: Agent,
    /// The server, for people.
    pub(super) place: String,
    stop: Arc<AtomicBool>,
}

impl Sender {
    pub(super) fn new(settings: &Settings, place: String, stop: Arc<AtomicBool>) -> Result<Self, Error> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("taskmaster/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .timeout_send_body(Some(BODY_MAX))
            .timeout_recv_body(Some(BODY_MAX));
        if place.starts_with("https:") {
            let trusted = trust::authorities(settings.ca.as_deref(), "AWS_CA_BUNDLE").map_err(Error::Settings)?;
            let trusted: Vec<_> = trusted.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.root_certs(RootCerts::new_with_certs(&trusted)).build());
        }
        Ok(Self { agent: config.build().into(), place, stop })
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An answer that is no error, or the one that no further try would change.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Answer, Error> {
        self.send_while(request, || self.is_stopped())
    }

    /// Likewise, for what takes something back: it is done even if an end is asked for.
    pub(super) fn send_last(&self, request: &Request<'_>) -> Result<Answer, Error> {
        self.send_while(request, || false)
    }

    fn send_while(&self, request: &Request<'_>, is_stopped: impl Fn() -> bool) -> Result<Answer, Error> {
        let mut backoff = Backoff::default();
        let mut last = String::new();
        for number in 0..TRIES_MAX {
            if number > 0 {
                let until = Instant::now() + backoff.wait();
                while Instant::now() < until && !is_stopped() {
                    std::thread::sleep(NAP.min(until.saturating_duration_since(Instant::now())));
                }
            }
            if is_stopped() {
                return Err(Error::Stopped);
            }
            last = match self.once(request) {
                Ok(answer) if answer.is_error && answer.may_pass() => {
                    let code = answer.element("Code").map_or_else(String::new, |code| format!(" ({code})"));
                    format!("it answers {}{code}", answer.status)
                }
                Ok(answer) => return Ok(answer),
                Err(error) if is_final(&error) => {
                    return Err(Error::Unreachable(format!("{}: {}", self.place, said(&error))));
                }
                Err(error) => said(&error),
            };
        }
        Err(Error::Unreachable(format!("{}: {last}, and {TRIES_MAX} tries did not help", self.place)))
    }

    fn once(&self, request: &Request<'_>) -> Result<Answer, ureq::Error> {
        let url = (request.sign)();
        let response = match request.method {
            Method::Put => self.agent.put(url).send(request.body)?,
            Method::Post => self.agent.post(url).send(request.body)?,
            Method::Delete => self.agent.delete(url).call()?,
            Method::Get | Method::Head => {
                let mut asked = self.agent.get(url);
                if let Some((from, len)) = request.range {
                    let last = from + u64::try_from(len).unwrap_or(u64::MAX).saturating_sub(1);
                    asked = asked.header("range", format!("bytes={from}-{last}"));
                }
                asked.call()?
            }
        };
        read(response, request)
    }
}

fn read(mut response: Response<Body>, request: &Request<'_>) -> Result<Answer, ureq::Error> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let (etag, region, date) = (header("etag"), header("x-amz-bucket-region"), header("date"));
    let status = response.status().as_u16();
    let max = request.range.map_or(TEXT_MAX, |(_, len)| u64::try_from(len).unwrap_or(u64::MAX).max(1 << 16));
    let body = response.body_mut().with_config().limit(max).read_to_vec()?;
    let mut answer = Answer { status, body, etag, region, date, is_error: !(200..300).contains(&status) };
    answer.is_error |= request.answers_late && answer.element("Code").is_some();
    Ok(answer)
}

/// Whether no further try would change it: the other side is not who it should be, or is asked in vain.
fn is_final(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        ureq::Error::BadUri(_) | ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::InvalidProxyUrl => true,
        ureq::Error::BodyExceedsLimit(_) => true,
        _ => false,
    }
}

/// What the library says, without the address.
fn said(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "there is no answer in time".to_owned(),
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::BadUri(_) => "its address cannot be used".to_owned(),
        ureq::Error::BodyExceedsLimit(_) => "its answer is longer than what was asked for".to_owned(),
        ureq::Error::Rustls(error) => error.to_string(),
        ureq::Error::Protocol(error) => error.to_string(),
        _ => "the connection failed".to_owned(),
    }
}
