-- Version 3: the versions of the states that tasks saved, with the tasks; the settings of queues.

ALTER TABLE taskmaster.final_task ADD COLUMN versions jsonb;
COMMENT ON COLUMN taskmaster.final_task.versions IS
    'Versions of the state that the task saved and that were kept when it ended, or NULL: see the view state_versions.';

CREATE TABLE taskmaster.queue_setting (
    cluster          int4 NOT NULL,
    partition        int4 NOT NULL,
    namespace        text NOT NULL,
    queue            text NOT NULL,
    paused           bool NOT NULL,
    draining         bool NOT NULL,
    rate_milli_per_s int8 NOT NULL,
    rate_burst       int8 NOT NULL,
    concurrency      int8 NOT NULL,
    depth_max        int8 NOT NULL,
    retention_ms     int8 NOT NULL,
    flags_deadlines  bool NOT NULL,
    policy           text NOT NULL,
    at               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (cluster, partition, namespace, queue)
);
COMMENT ON TABLE taskmaster.queue_setting IS
    'The settings of queues as each partition had them with its last checkpoint behind a change. Changes with it in one transaction.';

CREATE VIEW taskmaster.queue_config AS
SELECT DISTINCT ON (cluster, namespace, queue)
       namespace, queue, paused, draining,
       nullif(rate_milli_per_s, 0) / 1000.0 AS rate_per_s, rate_burst, nullif(concurrency, 0) AS concurrency,
       nullif(depth_max, 0) AS depth_max, retention_ms * interval '1 ms' AS retention,
       CASE WHEN flags_deadlines THEN 'flag' ELSE 'expire' END AS at_deadline, policy, at, cluster
FROM taskmaster.queue_setting
ORDER BY cluster, namespace, queue, at DESC, partition;
COMMENT ON VIEW taskmaster.queue_config IS 'The settings of each queue of each cluster, as they were stored last; no limit is NULL.';

CREATE VIEW taskmaster.state_versions AS
SELECT taskmaster.id_text(task.id) AS task,
       version.number AS version, nullif(version.parent, 0) AS parent,
       to_timestamp(version.time_us / 1000000.0) AS saved_at,
       version.attempt, version.bytes, version.new_bytes, decode(version.digest, 'hex') AS digest,
       nullif(version.label, '') AS label, version.branches, version.tags,
       contract.namespace, contract.queue, contract.kind, task.name, taskmaster.state_name(task.state) AS state, task.finished_at,
       task.id, task.cluster, task.partition
FROM taskmaster.final_task AS task
JOIN taskmaster.contract USING (contract)
CROSS JOIN LATERAL jsonb_to_recordset(task.versions) AS version (
    number int8, parent int8, time_us int8, attempt int8, bytes int8, new_bytes int8, digest text, label text, branches text[], tags text[])
WHERE task.versions IS NOT NULL AND NOT EXISTS (
    SELECT FROM taskmaster.final_task AS later
    WHERE later.id = task.id AND (later.cluster, later.number) > (task.cluster, task.number));
COMMENT ON VIEW taskmaster.state_versions IS
    'The versions of the states of finished tasks, as each task ended last: branches and tags that name them. The bytes are not stored.';
