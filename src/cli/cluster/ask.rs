//! Asking nodes about the cluster: the map from whichever answers, operators' requests from the one that keeps it.
//!
//! Invariant: a request is repeated only where it was refused with `not_leader`, so never when it may have been agreed to.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use taskmaster_client::Error;
use taskmaster_client::wire::{Connection, Message, Options};
use taskmaster_protocol::body::{self, ArchivedClusterMapReply, ClusterAdmin, Empty};
use taskmaster_protocol::{Body, Code, Header, Operation};

use super::view::ClusterView;
use crate::cli::{Exit, Failure};

/// Longest time to find the node that keeps the map: an election takes a second at the worst.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to some node of a cluster.
pub(super) struct Asker {
    /// Addresses to try: first those that were given, then those that the map names.
    addresses: Vec<String>,
    connection: Connection,
}

/// One value of [`body::cluster_verb`] with what it concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) verb: u32,
    pub(super) node: u64,
    pub(super) to: u64,
    pub(super) value: u64,
    pub(super) text: String,
    /// None: the group that keeps the map, or none.
    pub(super) partition: Option<u16>,
}

impl Asker {
    /// Connects to the first of the addresses, parted by commas, that answers.
    pub(super) async fn connect(addresses: &str) -> Result<Self, Failure> {
        let addresses: Vec<String> = addresses.split(',').map(|address| address.trim().to_owned()).collect();
        let connection = first(&addresses).await?;
        Ok(Self { addresses, connection })
    }

    /// The map as the connected node knows it; another node is asked where the connection is lost.
    pub(super) async fn view(&mut self) -> Result<ClusterView, Failure> {
        if self.connection.is_ended() {
            self.connection = first(&self.addresses).await?;
        }
        let message = match self.request(Operation::ClusterMap, &Empty::default()).await {
            Err(Error::Lost { .. }) => {
                self.connection = first(&self.addresses).await?;
                self.request(Operation::ClusterMap, &Empty::default()).await?
            }
            answer => answer?,
        };
        let message = match message.accepted() {
            Err(error) if error.code() == Some(Code::UnknownOperation) => {
                return Err(Failure::new(Exit::Refused, "the node's version knows no clusters: upgrade it"));
            }
            answer => answer?,
        };
        let reply = message.read::<ArchivedClusterMapReply>()?;
        let view = ClusterView::read(reply).map_err(|error| Error::Protocol(error.to_string()))?;
        let mut known: BTreeSet<String> = self.addresses.iter().cloned().collect();
        for address in view.nodes.iter().filter_map(super::view::NodeView::address) {
            if known.insert(address.clone()) {
                self.addresses.push(address);
            }
        }
        Ok(view)
    }

    /// Carries a request to the node that keeps the map; bootstrap and join stay with the connected one.
    pub(super) async fn carry(&mut self, request: &Request) -> Result<(), Failure> {
        let give_up = Instant::now() + PATIENCE;
        let body = request.body();
        loop {
            let message = self.request(Operation::ClusterAdmin, &body).await?;
            let error = match message.accepted() {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(Code::NotLeader) => error,
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= give_up {
                return Err(error.into());
            }
            self.follow().await?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects to the node that keeps the map, as far as that is known.
    async fn follow(&mut self) -> Result<(), Failure> {
        let view = self.view().await?;
        let leader = view.node(view.meta.leader).filter(|leader| leader.id != view.node);
        if let Some(address) = leader.and_then(super::view::NodeView::address) {
            // Where it cannot be reached, the connected node is asked again: it hears of the next leader.
            if let Ok((connection, _)) = Connection::connect(&address, &options()).await {
                self.connection = connection;
            }
        }
        Ok(())
    }

    async fn request<B: Body>(&self, operation: Operation, body: &B) -> Result<Message, Error> {
        let answer = self.connection.request(Header::request(operation, 0, None), body);
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(Error::Timeout { after: ANSWER_TIMEOUT }))
    }
}

impl Request {
    fn body(&self) -> ClusterAdmin {
        let mut bytes = Vec::new();
        let text = body::put(&mut bytes, self.text.as_bytes());
        let partition = self.partition.unwrap_or(taskmaster_protocol::frame::NO_PARTITION);
        let Self { verb, node, to, value, .. } = *self;
        ClusterAdmin { node, to, value, text, bytes, verb, partition: u32::from(partition) }
    }
}

fn options() -> Options {
    Options { client: concat!("taskmaster ", env!("CARGO_PKG_VERSION")).to_owned(), ..Options::default() }
}

async fn first(addresses: &[String]) -> Result<Connection, Failure> {
    let mut last = Failure::usage("no address was given");
    for address in addresses {
        match Connection::connect(address, &options()).await {
            Ok((connection, _)) => return Ok(connection),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_a_partition_concerns_none() {
        let request = Request { verb: 9, text: "n1:7800".to_owned(), ..Request::default() };
        let body = request.body();
        assert_eq!((body.partition, body.verb, body.bytes.as_slice()), (0xFFFF, 9, b"n1:7800".as_slice()));
        assert_eq!(Request { partition: Some(3), ..Request::default() }.body().partition, 3);
    }
}
