//! Asking nodes about the cluster: the map from the node that was named, operators' requests from the one that keeps it.
//!
//! It stands on single connections, not on the client that spreads over all nodes: what the named node knows, and that it
//! belongs to no cluster, is the answer that is wanted. Another node is asked only when the connection is lost.
//!
//! Invariant: a request is repeated only where it was refused with `not_leader`, so never when it may have been agreed to.

use std::time::{Duration, Instant};

use taskmaster_client::wire::{Connection, Message, Options};
use taskmaster_client::{ClusterChange, ClusterView, Error};
use taskmaster_protocol::body::{ArchivedClusterMapReply, Empty};
use taskmaster_protocol::{Body, Code, Header, Operation};

use super::view;
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

impl Asker {
    /// Connects to the first of the addresses, parted by commas, that answers.
    pub(super) async fn connect(addresses: &str) -> Result<Self, Failure> {
        let addresses: Vec<String> = addresses.split(',').map(|address| address.trim().to_owned()).collect();
        let connection = first(&addresses).await?;
        Ok(Self { addresses, connection })
    }

    /// The map as the connected node knows it; another node is asked where the connection is lost.
    pub(super) async fn view(&mut self) -> Result<ClusterView, Failure> {
        let answer = match self.request(Operation::ClusterMap, &Empty::default()).await {
            Err(Error::Lost { .. } | Error::Timeout { .. }) => {
                self.connection = first(&self.addresses).await?;
                self.request(Operation::ClusterMap, &Empty::default()).await?
            }
            answer => answer?,
        };
        let message = match answer.accepted() {
            Err(error) if error.code() == Some(Code::UnknownOperation) => {
                return Err(Failure::new(Exit::Refused, "the node's version knows no clusters: upgrade it"));
            }
            answer => answer?,
        };
        let view = ClusterView::read(message.read::<ArchivedClusterMapReply>()?)?;
        for address in view.nodes.iter().filter_map(view::address) {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
        Ok(view)
    }

    /// Carries a request to the node that keeps the map; bootstrap and join stay with the connected one.
    pub(super) async fn carry(&mut self, change: &ClusterChange) -> Result<(), Failure> {
        let give_up = Instant::now() + PATIENCE;
        let body = change.to_body();
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
        let leader = view.meta.leader.filter(|leader| Some(*leader) != view.answered_by);
        if let Some(address) = leader.and_then(|leader| view::node(&view, leader)).and_then(view::address)
            && let Ok((connection, _)) = Connection::connect(&address, &options()).await
        {
            // Where it cannot be reached, the connected node is asked again: it hears of the next leader.
            self.connection = connection;
        }
        Ok(())
    }

    async fn request<B: Body>(&self, operation: Operation, body: &B) -> Result<Message, Error> {
        let answer = self.connection.request(Header::request(operation, 0, None), body);
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .unwrap_or(Err(Error::Timeout { after: ANSWER_TIMEOUT, refusal: None }))
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
