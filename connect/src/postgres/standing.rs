//! How a database stands, for a check before it is relied on.

use std::time::{Duration, SystemTime};

use super::session::connect;
use super::{Error, Session, Settings, schema};

/// What was found.
#[derive(Clone, Debug)]
pub struct Standing {
    /// `server_version_num`.
    pub server: i32,
    /// Version of the schema; 0 for none.
    pub schema: i32,
    /// The role may make and write tables in the schema.
    pub may_write: bool,
    /// The connection is encrypted.
    pub is_encrypted: bool,
    /// The server is on this machine.
    pub is_local: bool,
    /// Between its clock and ours, as far as the round trip lets us tell.
    pub clocks_apart: Duration,
}

/// The process that serves a session, if the server is on this machine.
///
/// # Errors
/// When the server does not say.
pub async fn backend(session: &Session) -> Result<Option<u32>, Error> {
    let sql = concat!("SELECT pg_backend_pid(), ", is_local!());
    let row = session.timely(async { Ok(session.client.query_one(sql, &[]).await?) }).await?;
    let (pid, is_local): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok(u32::try_from(pid).ok().filter(|_| is_local))
}

/// Connects and looks.
///
/// # Errors
/// What keeps us out.
pub async fn standing(settings: &Settings) -> Result<Standing, Error> {
    let session = connect(settings).await?;
    session
        .timely(async {
            let schema = schema::version(&session).await?;
            let before = SystemTime::now();
            let row = session
                .client
                .query_one(
                    concat!(
                        "SELECT current_setting('server_version_num')::int4, clock_timestamp(),
                            coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false), ",
                        is_local!()
                    ),
                    &[],
                )
                .await?;
            let after = SystemTime::now();
            let theirs: SystemTime = row.try_get(1)?;
            let apart = |ours: SystemTime| theirs.duration_since(ours).unwrap_or_else(|error| error.duration());
            let clocks_apart = if theirs >= before && theirs <= after { Duration::ZERO } else { apart(before).min(apart(after)) };
            let may_write = if schema == 0 {
                false
            } else {
                let sql = "SELECT has_schema_privilege('taskmaster', 'CREATE, USAGE')
                              AND pg_has_role((SELECT relowner FROM pg_class WHERE oid = 'taskmaster.final_task'::regclass), 'USAGE')";
                session.client.query_one(sql, &[]).await?.try_get(0)?
            };
            Ok(Standing {
                server: row.try_get(0)?,
                schema,
                may_write,
                is_encrypted: row.try_get(2)?,
                is_local: row.try_get(3)?,
                clocks_apart,
            })
        })
        .await
}
