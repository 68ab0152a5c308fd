//! An object store: S3Proxy, which checks signatures and keeps objects as files; and a way to it that is not always there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{directory, hand_over, kill_all, program};

/// The key, and its secret: looked for in every text that must not have it.
pub(crate) const KEY: &str = "AKIATASKMASTER";
pub(crate) const SECRET: &str = "hunter4-is-secret";
/// The bucket that is there.
pub(crate) const BUCKET: &str = "backups";
/// Little memory, and little time for making code fast that runs for seconds.
const JAVA: [&str; 4] = ["-Xms32m", "-Xmx160m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

/// A server; dropping it kills it.
pub(crate) struct Objects {
    folder: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Objects {
    /// Starts one with an empty bucket.
    pub(crate) async fn start() -> Self {
        let folder = directory("objects-");
        let data = folder.path().join("data");
        for path in [&data, &data.join(BUCKET)] {
            std::fs::create_dir(path).unwrap();
            hand_over(path);
        }
        let address = crate::process::free_address();
        let properties = folder.path().join("s3proxy.conf");
        let text = format!(
            "s3proxy.endpoint=http://{address}\ns3proxy.authorization=aws-v2-or-v4\ns3proxy.identity={KEY}\n\
             s3proxy.credential={SECRET}\njclouds.provider=filesystem-nio2\njclouds.filesystem.basedir={}\n\
             jclouds.identity=local\njclouds.credential=local\n",
            data.display()
        );
        std::fs::write(&properties, text).unwrap();
        hand_over(&properties);
        let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/s3proxy/lib");
        assert!(lib.exists(), "the object store is not installed: scripts/setup --test");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut java = program("java");
        java.args(JAVA).arg(format!("-Djava.io.tmpdir={}", folder.path().display()));
        java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
        java.args(["-cp", &format!("{}/*", lib.canonicalize().unwrap().display()), "org.gaul.s3proxy.Main"]);
        java.arg("--properties").arg(&properties).current_dir(folder.path());
        java.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = Self { folder, address, child: java.spawn().unwrap() };
        let until = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(server.address).await.is_err() {
            let log = std::fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
            assert!(server.child.try_wait().unwrap().is_none(), "the object store ended: {log}");
            assert!(Instant::now() < until, "the object store does not start: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The files that are the objects under a prefix.
    pub(crate) fn objects(&self, prefix: &str) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![self.folder.path().join("data").join(BUCKET).join(prefix)]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }

    /// Where an object's file can be for a while.
    pub(crate) fn aside(&self) -> PathBuf {
        self.folder.path().join("aside")
    }

    /// Adds to a command what it needs to know to reach it at an address.
    pub(crate) fn know(command: &mut Command, address: SocketAddr) {
        command.env("AWS_ENDPOINT_URL_S3", format!("http://{address}")).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET).env("NO_PROXY", "127.0.0.1");
        command.env_remove("AWS_SESSION_TOKEN").env_remove("AWS_CA_BUNDLE");
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        kill_all(&self.child);
        let _ = self.child.wait();
    }
}

/// What a way does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes through.
    Pass,
    /// The server is said to be busy.
    Busy,
    /// The connection ends before the server hears of it.
    Lost,
    /// The server does it, and the answer ends in its middle.
    Cut,
}

/// A way to a server, on which each request has its fate.
pub(crate) struct Way {
    /// Where it begins.
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    spoiled: Arc<AtomicUsize>,
}

impl Way {
    /// A way to a server. `fate` is asked with the first line of each request, and how often there was one.
    pub(crate) async fn to(server: SocketAddr, fate: impl Fn(&str, usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, spoiled) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (noted, counted, fate) = (Arc::clone(&asked), Arc::clone(&spoiled), Arc::new(fate));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (noted, counted, fate) = (Arc::clone(&noted), Arc::clone(&counted), Arc::clone(&fate));
                let decide = move |line: &str| {
                    let mut noted = noted.lock().unwrap();
                    let fate = fate(line, noted.len());
                    noted.push(line.to_owned());
                    counted.fetch_add(usize::from(fate != Fate::Pass), Ordering::Relaxed);
                    fate
                };
                tokio::spawn(carry(client, server, decide));
            }
        });
        Self { address, asked, spoiled }
    }

    /// The first lines of all requests so far as words, without those of the signature.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests that did not simply pass.
    pub(crate) fn spoiled(&self) -> usize {
        self.spoiled.load(Ordering::Relaxed)
    }
}

/// Reads one message: its head and its body.
async fn message(from: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if from.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    if header("transfer-encoding").is_some() {
        while !bytes.ends_with(b"0\r\n\r\n") {
            if from.read_buf(&mut bytes).await.ok()? == 0 {
                break;
            }
        }
    } else {
        let whole = end + header("content-length").map_or(0, |len| len.parse().unwrap());
        while bytes.len() < whole {
            if from.read_buf(&mut bytes).await.ok()? == 0 {
                break;
            }
        }
    }
    Some((head, bytes))
}

async fn carry(mut client: TcpStream, server: SocketAddr, decide: impl Fn(&str) -> Fate) -> Option<()> {
    loop {
        let (head, bytes) = message(&mut client).await?;
        let words = head.lines().next()?.split(['?', '&', ' ']).filter(|word| !word.starts_with("X-Amz-"));
        let line = words.collect::<Vec<_>>().join(" ");
        let fate = decide(&line);
        match fate {
            Fate::Busy => {
                let busy = b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n";
                client.write_all(busy).await.ok()?;
                continue;
            }
            Fate::Lost => return None,
            Fate::Pass | Fate::Cut => {}
        }
        // Each on a connection of its own: what became of one is no matter of the next.
        let mut server = TcpStream::connect(server).await.ok()?;
        server.write_all(&bytes).await.ok()?;
        let (_, answer) = message(&mut server).await?;
        if fate == Fate::Cut {
            client.write_all(&answer[..answer.len() / 2]).await.ok()?;
            return None;
        }
        client.write_all(&answer).await.ok()?;
    }
}
