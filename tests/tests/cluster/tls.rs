//! Links under TLS, as `[cluster]` configures it: nodes of one authority form a cluster; who is of another one, or of none, is kept
//! out and hears why.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use taskmaster_client::Task;

use super::nodes::{Cluster, Place};

/// An authority, and the folder for what it signs.
struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(parent: &Path, name: &str) -> Self {
        let folder = parent.join(name);
        std::fs::create_dir(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// Lines of `[cluster]` for a node with a certificate for this name.
    fn lines(&self, name: &str) -> String {
        let path = |file: &str| self.folder.join(file);
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        let folder = self.folder.display();
        format!("tls_ca = \"{folder}/ca.pem\"\ntls_cert = \"{folder}/{name}.pem\"\ntls_key = \"{folder}/{name}.key\"\n")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_one_authority_form_a_cluster_and_others_hear_why_they_are_kept_out() {
    let mut cluster = Cluster::planned(Place::loopback()).await;
    let authority = Authority::new(cluster.directory.path(), "ours");
    let another = Authority::new(cluster.directory.path(), "theirs");
    for node in &mut cluster.nodes {
        let lines = authority.lines(&node.name);
        node.setup.more.push_str(&lines);
    }
    cluster.form().await;
    let client = cluster.client().await;
    client.submit(Task::new("probe").queue("probe")).await.unwrap();
    cluster.agreed().await;

    let stranger = cluster.add();
    let plain = cluster.nodes[stranger].setup.more.clone();
    cluster.nodes[stranger].setup.more.push_str(&another.lines("n4"));
    is_told(&mut cluster, stranger, &["signed by the authority"]).await;
    cluster.nodes[stranger].setup.more = plain;
    is_told(&mut cluster, stranger, &["TLS", "on all nodes or on none"]).await;

    // With the right certificate it is a node like the others.
    cluster.nodes[stranger].setup.more.push_str(&authority.lines("n4"));
    cluster.nodes[stranger].start();
    super::nodes::until("the fourth node", std::time::Duration::from_secs(60), || async {
        cluster.view().await.nodes.iter().any(|node| node.name == "n4" && node.is_alive)
    })
    .await;
    cluster.whole().await;
}

/// Starts a stranger: it and the cluster say why it is kept out.
async fn is_told(cluster: &mut Cluster, stranger: usize, words: &[&str]) {
    cluster.nodes[stranger].start();
    for number in [0, stranger] {
        let sentence = cluster.problem(number, words).await;
        eprintln!("{}: {sentence}", cluster.nodes[number].name);
        cluster.logged(number, words).await;
    }
    cluster.is_kept_out(stranger).await;
    cluster.nodes[stranger].kill();
}
