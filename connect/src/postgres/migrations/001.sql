-- Version 1: final tasks, partitioned by the day on which they ended; how far each partition of each cluster is.

CREATE TABLE taskmaster.cluster (
    cluster       int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            uuid NOT NULL UNIQUE,
    since         timestamptz NOT NULL DEFAULT now(),
    restored_from int4 REFERENCES taskmaster.cluster
);
COMMENT ON TABLE taskmaster.cluster IS 'Clusters that write here.';

CREATE TABLE taskmaster.checkpoint (
    cluster   int4 NOT NULL REFERENCES taskmaster.cluster,
    partition int4 NOT NULL,
    term      int8 NOT NULL,
    position  int8 NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (cluster, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE taskmaster.checkpoint IS
    'How far each partition is: all its final tasks up to this number are in final_task. Changes with them in one transaction.';

CREATE TABLE taskmaster.contract (
    contract     int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    canonical    bytea NOT NULL,
    namespace    text NOT NULL,
    queue        text NOT NULL,
    kind         text NOT NULL,
    priority     int2 NOT NULL,
    attempts_max int4 NOT NULL
);
CREATE UNIQUE INDEX contract_canonical ON taskmaster.contract (sha256(canonical));
CREATE INDEX contract_queue ON taskmaster.contract (namespace, queue, kind);
COMMENT ON TABLE taskmaster.contract IS 'What tasks have in common, once.';

CREATE TABLE taskmaster.final_task (
    cluster     int4 NOT NULL,
    partition   int4 NOT NULL,
    number      int8 NOT NULL,
    id          uuid NOT NULL,
    workflow    uuid,
    contract    int4 NOT NULL,
    state       int2 NOT NULL,
    attempts    int4 NOT NULL,
    failures    int4 NOT NULL,
    late        bool NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    deadline_at timestamptz,
    name        text,
    error_code  text,
    error       text,
    log_tail    bytea,
    payload     bytea,
    result      bytea
) PARTITION BY RANGE (finished_at);
CREATE INDEX final_task_id ON taskmaster.final_task (id);
COMMENT ON TABLE taskmaster.final_task IS
    'Ends of tasks, only ever appended. A task that was retried has a row for each end: the one of the latest cluster and number counts.';

CREATE FUNCTION taskmaster.id_text(id uuid) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT string_agg(substr('0123456789abcdefghjkmnpqrstvwxyz', substring(bits FROM 5 * place + 1 FOR 5)::int + 1, 1), '' ORDER BY place)
    FROM (SELECT B'00' || ('x' || replace(id::text, '-', ''))::bit(128) AS bits) AS whole, generate_series(0, 25) AS place
$$;
COMMENT ON FUNCTION taskmaster.id_text IS 'The 26 characters by which Taskmaster shows a task id.';

CREATE FUNCTION taskmaster.id_of(shown text) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT lpad(string_agg(to_hex(digit), '' ORDER BY place), 32, '0')::uuid
    FROM (SELECT place, substring(bits FROM 3 + 4 * place FOR 4)::int AS digit
          FROM (SELECT string_agg((strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(lower(shown), n, 1)) - 1)::bit(5)::text, '' ORDER BY n)::varbit AS bits
                FROM generate_series(1, 26) AS n) AS whole, generate_series(0, 31) AS place) AS digits
$$;
COMMENT ON FUNCTION taskmaster.id_of IS 'The id that Taskmaster shows as these 26 characters.';

CREATE FUNCTION taskmaster.id_time(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$$;
COMMENT ON FUNCTION taskmaster.id_time IS 'When the client made a task id.';

CREATE FUNCTION taskmaster.state_name(state int2) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (ARRAY['waiting', 'delayed', 'ready', 'leased', 'succeeded', 'failed', 'cancelled', 'expired'])[state + 1]
$$;

CREATE VIEW taskmaster.task_history AS
SELECT taskmaster.id_text(task.id) AS task,
       taskmaster.state_name(task.state) AS state,
       contract.namespace, contract.queue, contract.kind, task.name, contract.priority,
       task.attempts, contract.attempts_max, task.late,
       taskmaster.id_time(task.id) AS submitted_at, task.started_at, task.finished_at, task.deadline_at,
       task.error_code, task.error, task.payload, task.result, task.log_tail,
       taskmaster.id_text(task.workflow) AS workflow,
       task.id, task.cluster, task.partition, task.number
FROM taskmaster.final_task AS task
JOIN taskmaster.contract USING (contract)
WHERE NOT EXISTS (
    SELECT FROM taskmaster.final_task AS later
    WHERE later.id = task.id AND (later.cluster, later.number) > (task.cluster, task.number));
COMMENT ON VIEW taskmaster.task_history IS 'Each finished task once, as it ended last.';

CREATE VIEW taskmaster.queue_daily AS
SELECT date_trunc('day', task.finished_at) AS day, contract.namespace, contract.queue, contract.kind,
       count(*) AS ended,
       count(*) FILTER (WHERE task.state = 4) AS succeeded,
       count(*) FILTER (WHERE task.state = 5) AS failed,
       count(*) FILTER (WHERE task.state = 6) AS cancelled,
       count(*) FILTER (WHERE task.state = 7) AS expired,
       sum(task.failures) AS failed_attempts,
       avg(extract(epoch FROM task.finished_at - taskmaster.id_time(task.id))) AS seconds_from_submission
FROM taskmaster.final_task AS task
JOIN taskmaster.contract USING (contract)
GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW taskmaster.queue_daily IS 'Ends of tasks by day (of the session''s time zone), queue and kind; of retried tasks each end.';
