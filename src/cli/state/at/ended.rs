//! Tasks that had ended and were forgotten: what the database has of them.

use taskmaster_client::TaskId;
use taskmaster_connect::postgres::{self, Source, StoredTask};
use taskmaster_engine::Moment;
use taskmaster_protocol::PartitionId;
use taskmaster_storage::datadir::DataDir;

use super::{Arguments, Shown, state_name};
use crate::cli::connect::block_on;
use crate::cli::left::failed;
use crate::cli::state::database;
use crate::cli::{Exit, Failure};

/// What had ended by then, if a database is named: the task that is asked for, or all.
pub(super) fn look(arguments: &Arguments, partition: PartitionId, moment: &Moment) -> Result<Vec<Shown>, Failure> {
    let Some(settings) = arguments.database.settings()? else { return Ok(Vec::new()) };
    let own = DataDir::open_as_it_is(&arguments.data_dir).map_err(failed)?.meta().id;
    block_on(async {
        let session = postgres::connect(&settings).await.map_err(|error| database::failed(&error))?;
        postgres::check(&settings).await.map_err(|error| database::failed(&error))?;
        let sources = postgres::sources(&session).await.map_err(|error| database::failed(&error))?;
        let source = choose(sources, arguments.cluster.as_deref(), own)?;
        let mut tasks = Vec::new();
        postgres::ended(&session, &source, partition.0, moment.numbers, arguments.id.map(TaskId::as_u128), |task| {
            tasks.push(task.into())
        })
        .await
        .map_err(|error| database::failed(&error))?;
        Ok(tasks)
    })
}

fn choose(mut sources: Vec<Source>, wanted: Option<&str>, own: u128) -> Result<Source, Failure> {
    let listed: Vec<String> = sources.iter().map(|source| format!("{:032x}", source.id)).collect();
    let own = format!("{own:032x}");
    let wanted = wanted.unwrap_or(&own);
    let place = listed.iter().position(|id| id == wanted).or((wanted == own && listed.len() == 1).then_some(0));
    place.map(|place| sources.swap_remove(place)).ok_or_else(|| {
        let known = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
        let sentence = format!("the database has no cluster {wanted}; it has {known}: say which one with --cluster");
        Failure::new(Exit::NotFound, sentence)
    })
}

impl From<StoredTask> for Shown {
    fn from(task: StoredTask) -> Self {
        let StoredTask { id, state, namespace, queue, kind, name, attempts: attempt, payload, result, error, .. } =
            task;
        let (id, state) = (id.into(), state_name(state));
        Self { id, state, namespace, queue, kind, name, attempt, payload, result, error }
    }
}
