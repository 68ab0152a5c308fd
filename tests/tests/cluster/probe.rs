//! One connection to one node: what this very node says, without a client that would look elsewhere.

use std::time::Duration;

use taskmaster_client::wire::{Connection, Message, Options, Pushes};
use taskmaster_client::{ClusterChange, ClusterView, Error, State, TaskId};
use taskmaster_protocol::body::{
    self, ArchivedBatchReply, ArchivedClusterMapReply, ArchivedTaskPage, Body, Empty, GetTask, Spec, Submit, TaskRow,
};
use taskmaster_protocol::{Header, Operation, PartitionId};

/// Longest wait for an answer, where a test says nothing else.
const ANSWER: Duration = Duration::from_secs(20);

pub(crate) struct Probe {
    connection: Connection,
    /// Kept, since the connection would end without it.
    _pushes: Pushes,
}

impl Probe {
    pub(crate) async fn connect(address: impl AsRef<str>) -> Result<Self, Error> {
        let options = Options { connect_timeout: Duration::from_secs(10), ..Options::default() };
        let (connection, pushes) = Connection::connect(address.as_ref(), &options).await?;
        Ok(Self { connection, _pushes: pushes })
    }

    async fn ask<B: Body>(&self, header: Header, body: &B, longest: Duration) -> Result<Message, Error> {
        let answer = tokio::time::timeout(longest, self.connection.request(header, body)).await;
        answer.unwrap_or(Err(Error::Timeout { after: longest, refusal: None }))?.accepted()
    }

    pub(crate) async fn view(&self) -> Result<ClusterView, Error> {
        let header = Header::request(Operation::ClusterMap, 0, None);
        let message = self.ask(header, &Empty::default(), ANSWER).await?;
        ClusterView::read(message.read::<ArchivedClusterMapReply>()?)
    }

    pub(crate) async fn change(&self, change: &ClusterChange) -> Result<(), Error> {
        let header = Header::request(Operation::ClusterAdmin, 0, None);
        self.ask(header, &change.to_body(), ANSWER).await.map(drop)
    }

    /// Submits a task of queue `probe`; accepted when it is durable.
    pub(crate) async fn submit(&self, id: TaskId, longest: Duration) -> Result<(), Error> {
        let mut submit = Submit::default();
        submit.specs.push(Spec {
            queue: body::put(&mut submit.bytes, b"probe"),
            kind: body::put(&mut submit.bytes, b"probe"),
            lease_ms: 1_000,
            attempts_max: 1,
            ..Spec::default()
        });
        submit.tasks.push(TaskRow { id, ..TaskRow::default() });
        let header = Header::request(Operation::Submit, 0, Some(id.partition()));
        let message = self.ask(header, &submit, longest).await?;
        assert_eq!(message.read::<ArchivedBatchReply>()?.accepted.to_native(), 1, "{id}");
        Ok(())
    }

    /// What the node says about a task.
    pub(crate) async fn state(&self, id: TaskId, longest: Duration) -> Result<State, Error> {
        let header = Header::request(Operation::GetTask, 0, Some(id.partition()));
        let message = self.ask(header, &GetTask { id }, longest).await?;
        let page = message.read::<ArchivedTaskPage>()?;
        Ok(State::from_number(page.rows[0].state).unwrap())
    }
}

/// A new id in a partition.
pub(crate) fn id_in(client: &taskmaster_client::Client, partition: PartitionId) -> TaskId {
    loop {
        let id = client.task_id();
        if id.partition() == partition {
            return id;
        }
    }
}
