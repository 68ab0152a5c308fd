//! A Kafka broker: one node that is its own controller, fresh and small; encrypted and with a password for who wants that.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::{directory, hand_over, kill_all, private_file, program};
use crate::cluster::nodes::Place;

/// Any id will do.
const CLUSTER: &str = "AgWljenHS8egdPG0cMK88Q";
const PORT: u16 = 9_092;
const CONTROLLER_PORT: u16 = 9_093;
/// Where it speaks TLS and asks for a password, if it does.
const SECURED_PORT: u16 = 9_094;
/// Who it knows there, and the password: looked for in every text that must not have it.
pub(crate) const USER: &str = "me";
pub(crate) const PASSWORD: &str = "hunter6-is-secret";
/// How passwords are proved.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-512";
/// Little memory, and little time for making code fast that runs for seconds.
const JAVA: [&str; 4] = ["-Xms96m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// Longest wait for what a broker is asked.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A broker; dropping it kills it.
pub(crate) struct Kafka {
    folder: TempDir,
    /// An address of the loopback device that no other has, so that no two ask for one port.
    host: IpAddr,
    certificates: Option<Certificates>,
    child: Option<Child>,
}

/// A message as it is sent or read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Sent {
    pub(crate) fn value(value: impl Into<Vec<u8>>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The last header of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().rfind(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn of(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        let headers = headers.map(|header| (header.key.to_owned(), text(header.value))).collect();
        Self { key: text(message.key()), value: message.payload().unwrap_or_default().to_vec(), headers }
    }
}

fn jars() -> String {
    let lib: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kafka/lib");
    assert!(lib.exists(), "the broker is not installed: scripts/setup --test");
    format!("{}/*", lib.canonicalize().unwrap().display())
}

impl Kafka {
    /// Makes and starts one.
    pub(crate) async fn start() -> Self {
        Self::start_at(Place::loopback().host(0), None).await
    }

    /// One that listens at [`Kafka::secured_address`] as well, with a certificate, and knows [`USER`] there.
    pub(crate) async fn start_secured() -> Self {
        let host = Place::loopback().host(0);
        Self::start_at(host, Some(Certificates::of(&host.to_string()))).await
    }

    async fn start_at(host: IpAddr, certificates: Option<Certificates>) -> Self {
        let folder = directory("kafka-");
        let properties = folder.path().join("server.properties");
        let mut format = Self::java(folder.path());
        format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"]).arg(&properties);
        let (mut listener, mut secured) = (String::new(), String::new());
        if let Some(certificates) = &certificates {
            listener = format!(",SASL_SSL://{host}:{SECURED_PORT}");
            secured = Self::secured(folder.path(), certificates);
            format.args(["--add-scram", &format!("{MECHANISM}=[name={USER},password={PASSWORD}]")]);
        }
        let data = folder.path().join("data");
        std::fs::write(
            &properties,
            format!(
                "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{host}:{CONTROLLER_PORT}\n\
                 listeners=PLAINTEXT://{host}:{PORT},CONTROLLER://{host}:{CONTROLLER_PORT}{listener}\n\
                 advertised.listeners=PLAINTEXT://{host}:{PORT}{listener}\ncontroller.listener.names=CONTROLLER\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL\nlog.dirs={}\n\
                 offsets.topic.replication.factor=1\noffsets.topic.num.partitions=2\n\
                 transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
                 transaction.state.log.num.partitions=2\ngroup.initial.rebalance.delay.ms=0\n\
                 log.cleaner.dedupe.buffer.size=16777216\nnum.network.threads=1\nnum.io.threads=2\n\
                 auto.create.topics.enable=false\nlog.flush.interval.messages=1\n{secured}",
                data.display()
            ),
        )
        .unwrap();
        hand_over(&properties);
        let made = format.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut broker = Self { folder, host, certificates, child: None };
        broker.restart().await;
        broker
    }

    /// What the secured listener needs: a file with key and certificate, and whom to ask for passwords.
    fn secured(folder: &Path, certificates: &Certificates) -> String {
        let read = |file: &str| std::fs::read_to_string(certificates.path(file)).unwrap();
        let store = folder.join("keystore.pem");
        private_file(&store, &format!("{}{}", read("server.key"), read("server.pem")));
        format!(
            "sasl.enabled.mechanisms={MECHANISM}\nlistener.name.sasl_ssl.ssl.keystore.type=PEM\n\
             listener.name.sasl_ssl.ssl.keystore.location={}\nlistener.name.sasl_ssl.{}.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;\n",
            store.display(),
            MECHANISM.to_lowercase(),
        )
    }

    fn java(folder: &Path) -> Command {
        let mut java = program("java");
        java.args(JAVA).arg(format!("-Djava.io.tmpdir={}", folder.display())).args(["-cp", &jars()]);
        java.current_dir(folder);
        java
    }

    /// Starts the broker, after it was killed, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        self.restart_without_waiting();
        let until = Instant::now() + Duration::from_secs(120);
        while !self.answers().await {
            assert!(Instant::now() < until, "the broker does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the broker, which takes a while.
    pub(crate) fn restart_without_waiting(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut java = Self::java(self.folder.path());
        java.arg("kafka.Kafka").arg(self.folder.path().join("server.properties"));
        java.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(java.spawn().unwrap());
    }

    async fn answers(&self) -> bool {
        let consumer: BaseConsumer = self.config().create().unwrap();
        let looked =
            move || consumer.fetch_metadata(None, Duration::from_secs(1)).is_ok_and(|all| !all.brokers().is_empty());
        tokio::task::spawn_blocking(looked).await.unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        kill_all(&child);
        child.wait().unwrap();
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("{}:{PORT}", self.host)
    }

    /// Where it listens with encryption, and wants a password.
    pub(crate) fn secured_address(&self) -> String {
        format!("{}:{SECURED_PORT}", self.host)
    }

    /// The file of the authority that signed its certificate.
    pub(crate) fn authority(&self) -> String {
        self.certificates.as_ref().expect("it is secured").text("ca.pem")
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address()).set("message.timeout.ms", "120000");
        config.set("reconnect.backoff.max.ms", "500");
        config
    }

    /// Makes a topic.
    pub(crate) async fn make_topic(&self, name: &str, partitions: i32) {
        self.make_topic_of(NewTopic::new(name, partitions, TopicReplication::Fixed(1))).await;
    }

    /// Makes a topic that takes no messages longer than so many bytes.
    pub(crate) async fn make_narrow_topic(&self, name: &str, partitions: i32, message_bytes_max: u32) {
        let max = message_bytes_max.to_string();
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        self.make_topic_of(topic.set("max.message.bytes", &max)).await;
    }

    async fn make_topic_of(&self, topic: NewTopic<'_>) {
        let admin: AdminClient<DefaultClientContext> = self.config().create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER_MAX));
        admin.create_topics([&topic], &options).await.unwrap()[0].as_ref().unwrap();
    }

    /// Removes a topic with all that is in it.
    pub(crate) async fn remove_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = self.config().create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(ANSWER_MAX));
        admin.delete_topics(&[name], &options).await.unwrap()[0].as_ref().unwrap();
    }

    /// Sends messages to a partition of a topic, each once; returns when the broker has them.
    pub(crate) async fn send(&self, topic: &str, partition: i32, messages: impl IntoIterator<Item = Sent>) {
        let mut config = self.config();
        config.set("enable.idempotence", "true").set("linger.ms", "1");
        let producer: FutureProducer = config.create().unwrap();
        let mut sending = Vec::new();
        for message in messages {
            let headers = message
                .headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }));
            let record = FutureRecord::to(topic).partition(partition).headers(headers);
            let record = record.key(message.key.as_str()).payload(message.value.as_slice());
            sending.push(producer.send_result(record).map_err(|(error, _)| error).unwrap());
        }
        for sent in sending {
            sent.await.unwrap().map_err(|(error, _)| error).unwrap();
        }
        producer.flush(ANSWER_MAX).unwrap();
    }

    /// Everything that is in a partition of a topic, once it has `count` messages.
    pub(crate) async fn read(&self, topic: &str, partition: i32, count: usize) -> Vec<Sent> {
        let mut config = self.config();
        config.set("group.id", "tests").set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut parts = TopicPartitionList::new();
        parts.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        consumer.assign(&parts).unwrap();
        let read = move || {
            let (mut messages, until) = (Vec::new(), Instant::now() + ANSWER_MAX);
            while messages.len() < count && Instant::now() < until {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                    messages.push(Sent::of(&message));
                }
            }
            messages
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    /// Everything that readers of committed messages find in a partition of a topic.
    pub(crate) async fn read_all(&self, topic: &str, partition: i32) -> Vec<Sent> {
        let mut config = self.config();
        config.set("group.id", "tests").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut parts = TopicPartitionList::new();
        parts.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        consumer.assign(&parts).unwrap();
        let read = move || {
            let (mut messages, until) = (Vec::new(), Instant::now() + ANSWER_MAX);
            loop {
                match consumer.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => messages.push(Sent::of(&message)),
                    Some(Err(KafkaError::PartitionEOF(_))) => return messages,
                    Some(Err(_)) | None => assert!(Instant::now() < until, "the topic has no end"),
                }
            }
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    /// What a group has committed of a partition.
    pub(crate) async fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let mut config = self.config();
        config.set("group.id", group);
        let consumer: BaseConsumer = config.create().unwrap();
        let mut parts = TopicPartitionList::new();
        parts.add_partition(topic, partition);
        let asked = move || consumer.committed_offsets(parts, ANSWER_MAX).unwrap();
        let parts = tokio::task::spawn_blocking(asked).await.unwrap();
        parts.elements()[0].offset().to_raw().filter(|offset| *offset >= 0)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            kill_all(child);
            let _ = child.wait();
        }
    }
}
