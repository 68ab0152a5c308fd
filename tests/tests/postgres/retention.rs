//! Old history is dropped by days.

use std::time::{Duration, Instant};

use taskmaster_client::{Client, Task};

use super::section;
use crate::process::{Setup, directory};
use crate::services::postgres::Postgres;

/// Makes the part of the day that was so many days ago, by the server's clock.
async fn make_day(postgres: &Postgres, days_ago: i32) {
    let sql = format!(
        "DO $$ DECLARE day date := (now() AT TIME ZONE 'UTC')::date - {days_ago}; BEGIN
         EXECUTE format('CREATE TABLE taskmaster.final_task_%s PARTITION OF taskmaster.final_task FOR VALUES FROM (%L) TO (%L)',
             to_char(day, 'YYYYMMDD'), day || ' 00:00:00+00', day + 1 || ' 00:00:00+00'); END $$"
    );
    postgres.client().await.batch_execute(&sql).await.unwrap();
}

/// How many days ago the days of the history were.
async fn days(postgres: &Postgres) -> Vec<i32> {
    let sql = "SELECT (now() AT TIME ZONE 'UTC')::date - to_date(right(relname, 8), 'YYYYMMDD') AS ago
               FROM pg_inherits JOIN pg_class ON oid = inhrelid
               WHERE inhparent = 'taskmaster.final_task'::regclass ORDER BY ago";
    postgres.client().await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Makes a chunk of states that was needed so many days ago, by the server's clock.
async fn make_chunk(postgres: &Postgres, days_ago: i32) {
    let sql = "INSERT INTO taskmaster.state_chunk (cluster, partition, digest, day, bytes)
               VALUES (1, 0, sha256(int4send($1)), (now() AT TIME ZONE 'UTC')::date - $1, 'state')";
    postgres.client().await.execute(sql, &[&days_ago]).await.unwrap();
}

/// How many days ago the chunks were needed that are there.
async fn chunks(postgres: &Postgres) -> Vec<i32> {
    let sql = "SELECT (now() AT TIME ZONE 'UTC')::date - day AS ago FROM taskmaster.state_chunk WHERE cluster = 1 ORDER BY ago";
    postgres.client().await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_of_history_go_when_their_retention_is_over_and_no_sooner() {
    let into_day = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() % 86_400;
    if into_day > 86_400 - 240 {
        // Days are told by their distance from today.
        tokio::time::sleep(Duration::from_secs(86_401 - into_day)).await;
    }
    let postgres = Postgres::start().await;
    postgres.migrate().await;
    for days_ago in [1, 9, 12, 400] {
        make_day(&postgres, days_ago).await;
        make_chunk(&postgres, days_ago).await;
    }
    let directory = directory();
    let mut setup = Setup::new(&directory);
    setup.more = section(&postgres, "");
    let mut node = setup.start();
    let client = Client::connect(node.address.to_string()).await.unwrap();
    let id = client.submit(Task::new("any")).await.unwrap().id;
    client.cancel([id]).await.unwrap();
    // Today's day is made, and without a retention all stay. All partitions become known, also those that had no task.
    let database = postgres.client().await;
    let other = (id.partition().0 + 1) % 64;
    let known = format!("SELECT count(*) FROM taskmaster.checkpoint WHERE partition = {other}");
    let known = async || database.query_one(&known, &[]).await.unwrap().get::<_, i64>(0) == 1;
    let until = Instant::now() + Duration::from_secs(180);
    while days(&postgres).await.len() < 5 || !known().await {
        assert!(Instant::now() < until, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(node.terminate().success());
    for days_ago in [9, 12] {
        let at = format!("now() - interval '{days_ago} days'");
        let stretch = format!("INSERT INTO taskmaster.stretch SELECT 1, {other}, 1000 - {days_ago}, {at}, {at}, ''");
        database.batch_execute(&stretch).await.unwrap();
    }
    // Another cluster keeps its history for ever, and has a task of a day that this one shares.
    let shared = "INSERT INTO taskmaster.cluster (cluster, id) OVERRIDING SYSTEM VALUE VALUES (1000, lpad('7', 32, '7')::uuid);
        INSERT INTO taskmaster.contract (contract, canonical, namespace, queue, kind, priority, attempts_max)
            OVERRIDING SYSTEM VALUE VALUES (1000, '', 'default', 'q', 'k', 2, 3);
        INSERT INTO taskmaster.final_task (cluster, partition, number, id, contract, state, attempts, failures, late, finished_at)
            SELECT c, 0, 1, gen_random_uuid(), 1000, 4, 1, 0, false, now() - interval '12 days' FROM (VALUES (1), (1000)) AS of (c);
        INSERT INTO taskmaster.checkpoint (cluster, partition, term, position) VALUES (1000, 0, 1, 1);
        INSERT INTO taskmaster.stretch SELECT 1000, 0, 0, now() - interval '12 days', now() - interval '12 days', '';
        INSERT INTO taskmaster.state_chunk (cluster, partition, digest, day, bytes)
            VALUES (1000, 0, sha256('7'), (now() AT TIME ZONE 'UTC')::date - 12, 'state')";
    database.batch_execute(shared).await.unwrap();
    setup.more = section(&postgres, "retention = \"10d\"\n");
    let mut node = setup.start();
    while days(&postgres).await.len() > 4 {
        assert!(Instant::now() < until, "{:?}: {}", days(&postgres).await, node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(days(&postgres).await[1..], [1, 9, 12]);
    // And what is known of the order of their tasks.
    let order = "SELECT behind FROM taskmaster.stretch WHERE cluster = 1 ORDER BY 1";
    let kept = async || database.query(order, &[]).await.unwrap().iter().map(|row| row.get(0)).collect::<Vec<i64>>();
    while kept().await != [0, 991] {
        assert!(Instant::now() < until, "{:?}: {}", kept().await, node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while chunks(&postgres).await.len() > 2 {
        assert!(Instant::now() < until, "{:?}: {}", chunks(&postgres).await, node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(chunks(&postgres).await, [1, 9]);
    let others = "SELECT (SELECT array_agg(cluster) FROM taskmaster.final_task WHERE finished_at < now() - interval '11 days'),
        (SELECT count(*) FROM taskmaster.stretch WHERE cluster = 1000), (SELECT count(*) FROM taskmaster.state_chunk WHERE cluster = 1000)";
    let others = database.query_one(others, &[]).await.unwrap();
    assert_eq!(
        (others.get(0), others.get(1), others.get(2)),
        (vec![1_000_i32], 1_i64, 1_i64),
        "what is another cluster's"
    );
    // It ends with the node.
    assert!(node.terminate().success());
}
