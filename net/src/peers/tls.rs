//! Mutual TLS for links: both sides show a certificate that the cluster's authority signed and that has their node's name.
//!
//! TLS 1.3 only, without resumption, as a machine beside the socket: bytes in, bytes out, no I/O. Chains are checked while
//! the sides shake hands, names when the greeting has said who the other side is.
//!
//! What this does not do: certificates that were revoked are not noticed, and files that change are read at the next start.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};
use taskmaster_protocol::FrameBuffer;
use taskmaster_protocol::peer::MAGIC;

use crate::input::Input;

/// The files of one node, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authority that signs those of all nodes.
    pub ca: PathBuf,
    /// The node's certificate, and those between it and the authority's.
    pub cert: PathBuf,
    /// The key of the node's certificate.
    pub key: PathBuf,
}

/// Why a node cannot use its files. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is no PEM.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// A file has nothing of what it is for.
    #[error("{} contains no certificate in PEM", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The certificate is made out to somebody else.
    #[error(
        "the certificate in {} is not made out to this node: its subject alternative names must contain DNS:{name}",
        path.display()
    )]
    Name {
        /// The certificate's file.
        path: PathBuf,
        /// The node's name.
        name: String,
    },
    /// Certificate, key and authority do not belong together, or are of a kind that cannot be used.
    #[error("the certificate in {} cannot be used: {error}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
}

/// What a node needs to speak TLS with its peers. Shared by its shards.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the files of the node with this name and checks that they belong together.
    ///
    /// # Errors
    /// Which file is at fault, and what would be right.
    pub fn load(files: &TlsFiles, node_name: &str) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let unusable = |path: &Path, error: String| TlsError::Unusable { path: path.to_owned(), error };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|error| unusable(&files.ca, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| TlsError::File { path: files.key.clone(), error })?;
        if has_name(&chain, node_name).is_err() {
            return Err(TlsError::Name { path: files.cert.clone(), name: node_name.to_owned() });
        }
        let at_cert = |error: Error| unusable(&files.cert, error.to_string());
        let of_clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&files.ca, error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(at_cert)?
            .with_client_cert_verifier(of_clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(at_cert)?;
        server.send_tls13_tickets = 0;
        let of_servers = Arc::new(Signed::new(roots, &provider));
        of_servers.check(&chain[0], &chain[1..], UnixTime::now()).map_err(at_cert)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(at_cert)?
            .dangerous()
            .with_custom_certificate_verifier(of_servers)
            .with_client_auth_cert(chain, key)
            .map_err(at_cert)?;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::File { path: path.to_owned(), error };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(failed)?.collect();
    let found = found.map_err(failed)?;
    if found.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(found) }
}

fn has_name(chain: &[CertificateDer<'_>], name: &str) -> Result<(), Error> {
    let certificate = chain.first().ok_or(Error::NoCertificatesPresented)?;
    let name = ServerName::try_from(name).map_err(|error| Error::General(error.to_string()))?;
    verify_server_name(&ParsedCertificate::try_from(certificate)?, &name)
}

/// Accepts a certificate that the authority signed, whatever its name: that is checked when the name is known.
#[derive(Debug)]
struct Signed {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Signed {
    fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider) -> Self {
        Self { roots, algorithms: provider.signature_verification_algorithms }
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for Signed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("peers speak TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Why TLS ends a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The other side speaks the peer protocol without TLS.
    Plain,
    /// As a part of a sentence.
    Tls(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Tls(error.to_string())
    }
}

/// TLS of one link.
pub(super) struct Session {
    connection: Connection,
    any_read: bool,
}

impl Session {
    pub(super) fn dialed(tls: &Tls, address: SocketAddr) -> Result<Self, Failed> {
        let name = ServerName::IpAddress(address.ip().into());
        Ok(Self::new(ClientConnection::new(Arc::clone(&tls.client), name)?.into()))
    }

    pub(super) fn accepted(tls: &Tls) -> Result<Self, Failed> {
        Ok(Self::new(ServerConnection::new(Arc::clone(&tls.server))?.into()))
    }

    fn new(mut connection: Connection) -> Self {
        // The link bounds what it is given.
        connection.set_buffer_limit(None);
        Self { connection, any_read: false }
    }

    /// Appends to `out` what must be sent for these pieces to arrive; before the handshake is over they are kept. Fails when
    /// reading has failed before.
    pub(super) fn write(&mut self, pieces: &[&[u8]], out: &mut FrameBuffer) -> io::Result<()> {
        let outcome = pieces.iter().try_for_each(|piece| self.connection.writer().write_all(piece));
        self.pump(out);
        outcome
    }

    /// Takes bytes of the socket: plain bytes go to `input`, what must be sent in answer to `out`.
    pub(super) fn read(&mut self, mut bytes: &[u8], input: &mut Input, out: &mut FrameBuffer) -> Result<(), Failed> {
        if !core::mem::replace(&mut self.any_read, true) && bytes.starts_with(&MAGIC) {
            return Err(Failed::Plain);
        }
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).map_err(|error| Failed::Tls(error.to_string()))?;
            let outcome = self.connection.process_new_packets();
            // Also after a failure: then it is the alert that tells the other side.
            self.pump(out);
            let plain = outcome?.plaintext_bytes_to_read();
            let mut left = plain;
            while left > 0 {
                let room = input.room(input.filled().len() + left);
                let limit = left.min(room.len());
                let count = self.connection.reader().read(&mut room[..limit]);
                let count = count.map_err(|error| Failed::Tls(error.to_string()))?;
                input.took(count);
                left -= count;
            }
        }
        Ok(())
    }

    /// Whether the other side's certificate is made out to the node with this name.
    pub(super) fn vouches_for(&self, node_name: &str) -> bool {
        has_name(self.connection.peer_certificates().unwrap_or_default(), node_name).is_ok()
    }

    fn pump(&mut self, out: &mut FrameBuffer) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a buffer takes everything");
        }
    }
}
