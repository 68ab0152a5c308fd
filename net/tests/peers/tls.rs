//! The same under TLS, and what happens to those who are not trusted.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use taskmaster_net::peers::{Tls, TlsError, TlsFiles};
use tempfile::TempDir;

use super::*;

/// An authority, and the folder for what it signs.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("room");
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// The files of a node with a certificate for this name.
    fn files(&self, name: &str) -> TlsFiles {
        let path = |file: &str| self.folder.path().join(file);
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files =
            TlsFiles { ca: path("ca.pem"), cert: path(&format!("{name}.pem")), key: path(&format!("{name}.key")) };
        std::fs::write(&files.cert, certificate.pem()).expect("room");
        std::fs::write(&files.key, key.serialize_pem()).expect("room");
        files
    }

    fn tls(&self, name: &str) -> Option<Tls> {
        Some(Tls::load(&self.files(name), name).expect("good files"))
    }
}

#[test]
fn batches_arrive_whole_and_in_order() {
    let authority = Authority::new();
    let (tls_a, tls_b) = (authority.tls("na"), authority.tls("nb"));
    let both = shard(|| async move {
        let a = Node::start_with(identity(A), address(), tls_a);
        let b = Node::start_with(identity(B), address(), tls_b);
        a.knows(B, &b);
        b.knows(A, &a);
        for number in 0..300 {
            while a.send(B, &numbered(number)) == Sent::Dropped {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let large: Vec<u8> = (0..8u32 << 20).map(|at| at.to_le_bytes()[1]).collect();
        assert_eq!(b.send(A, &large), Sent::Queued);
        until("all arrived", || b.batches() == 300 && a.batches() == 1).await;
        assert!(a.recorder.seen.borrow().batches[0].2 == large);
        for (number, (_, _, bytes)) in b.recorder.seen.borrow().batches.iter().enumerate() {
            assert!(*bytes == numbered(number as u64), "batch {number}");
        }
        assert_eq!((a.lost(), b.lost(), a.peers.unsent_bytes(B)), (0, 0, 0));
    });
    both.join().unwrap();
}

#[test]
fn who_is_not_trusted_hears_why_and_is_not_heard() {
    let (authority, other) = (Authority::new(), Authority::new());
    // Who dials, who listens, and what both say then.
    let cases = [
        (other.tls("na"), authority.tls("nb"), "signed by the authority"),
        (None, authority.tls("nb"), "on all nodes or on none"),
        (authority.tls("na"), None, "on all nodes or on none"),
        (authority.tls("nz"), authority.tls("nb"), "must contain DNS:na"),
        (authority.tls("na"), authority.tls("nz"), "must contain DNS:nb"),
    ];
    let both = shard(move || async move {
        for (dials, listens, words) in cases {
            let a = Node::start_with(identity(A), address(), dials);
            let b = Node::start_with(identity(B), address(), listens);
            a.knows(B, &b);
            let said = |node: &Node| {
                let of_tls = |refused: &Refused| refused.reason == Reason::Tls && refused.sentence.contains(words);
                node.peers.refusals().iter().any(of_tls)
            };
            let start = Instant::now();
            while !(said(&a) && said(&b)) {
                let _ = a.send(B, b"never arrives");
                let seen = (a.peers.refusals(), b.peers.refusals(), a.peers.links());
                assert!(start.elapsed() < DEADLINE, "both say {words:?}: {seen:#?}");
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(b.batches(), 0);
            a.peers.stop();
            b.peers.stop();
        }
    });
    both.join().unwrap();
}

#[test]
fn files_that_do_not_belong_to_the_node_are_refused_at_its_start() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = authority.files("na");
    assert!(Tls::load(&files, "na").is_ok());
    let error = Tls::load(&files, "nb").unwrap_err();
    assert!(matches!(error, TlsError::Name { .. }) && error.to_string().contains("must contain DNS:nb"), "{error}");
    let no_key = TlsFiles { key: files.ca.clone(), ..files.clone() };
    assert!(matches!(Tls::load(&no_key, "na"), Err(TlsError::File { .. })));
    let absent = TlsFiles { ca: files.ca.join("absent"), ..files.clone() };
    assert!(matches!(Tls::load(&absent, "na"), Err(TlsError::File { .. })));
    let no_certificate = TlsFiles { cert: files.key.clone(), ..files.clone() };
    assert!(matches!(Tls::load(&no_certificate, "na"), Err(TlsError::Empty { .. })));
    let other_key = TlsFiles { key: other.files("na").key, ..files.clone() };
    assert!(matches!(Tls::load(&other_key, "na"), Err(TlsError::Unusable { .. })));
    let other_authority = TlsFiles { ca: other.files("na").ca, ..files };
    assert!(matches!(Tls::load(&other_authority, "na"), Err(TlsError::Unusable { .. })));
}

#[test]
fn strangers_at_a_tls_port_are_refused_whatever_they_send() {
    let authority = Authority::new();
    let tls = authority.tls("nb");
    let one = shard(|| async move {
        let b = Node::start_with(identity(B), address(), tls);
        for (count, first) in
            [&b"GET / HTTP/1.1"[..], &[0x16, 3, 3, 0x40, 0], &[0x17, 3, 3, 0, 1, 0], &[0; 64]].into_iter().enumerate()
        {
            let mut stranger = TcpStream::connect(b.address).unwrap();
            stranger.write_all(&[first, &[0x5a; 32 << 10]].concat()).unwrap();
            until("it is refused", || b.peers.stats().refusals > count as u64).await;
        }
        assert_eq!(b.refusal().await.reason, Reason::Tls);
    });
    one.join().unwrap();
}
