//! Certificates that servers and nodes show each other: an authority, and what it signed, in a folder that servers may read.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// An authority and two certificates of it.
pub(crate) struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// A server's certificate for this name or address, and a client's whose name is `taskmaster`.
    pub(crate) fn of(name: &str) -> Self {
        let folder = super::directory("certificates-");
        let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Names of their own: OpenSSL takes a certificate whose issuer is called as it is for one that signed itself.
        authority.distinguished_name.push(DnType::CommonName, "authority");
        let authority_key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let made = Self { folder };
        super::private_file(&made.path("ca.pem"), &root.pem());
        let mut client = CertificateParams::new(Vec::<String>::new()).unwrap();
        client.distinguished_name.push(DnType::CommonName, "taskmaster");
        let mut server = CertificateParams::new(vec![name.to_owned()]).unwrap();
        server.distinguished_name.push(DnType::CommonName, "server");
        for (of, params) in [("server", server), ("client", client)] {
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            super::private_file(&made.path(&format!("{of}.pem")), &certificate.pem());
            super::private_file(&made.path(&format!("{of}.key")), &key.serialize_pem());
        }
        made
    }

    /// One of `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// The same as text.
    pub(crate) fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }
}
