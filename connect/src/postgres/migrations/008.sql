-- Version 8: what few tasks have beside their outcome, which may be ended and begun again, and weights of queues.

ALTER TABLE taskmaster.final_task ADD COLUMN particulars jsonb;
COMMENT ON COLUMN taskmaster.final_task.particulars IS
    'What few tasks have: keys, the task whose outcome it has without having run, failures that were forgiven, the last progress; docs/formats/postgres.md.';

ALTER TABLE taskmaster.contract ADD COLUMN restartable bool NOT NULL DEFAULT false;
COMMENT ON COLUMN taskmaster.contract.restartable IS 'Attempts may be ended and begun again.';

-- Behind 37 bytes of numbers a contract has five texts, each behind its length, the less significant byte first; and of a restartable one a 1.
DO $$
DECLARE
    found record;
    place int;
BEGIN
    FOR found IN SELECT contract, canonical FROM taskmaster.contract LOOP
        place := 37;
        FOR part IN 1..5 LOOP
            EXIT WHEN place + 2 > octet_length(found.canonical);
            place := place + 2 + get_byte(found.canonical, place) + 256 * get_byte(found.canonical, place + 1);
        END LOOP;
        IF place + 1 = octet_length(found.canonical) THEN
            UPDATE taskmaster.contract SET restartable = get_byte(found.canonical, place) = 1 WHERE contract = found.contract;
        END IF;
    END LOOP;
END $$;

CREATE OR REPLACE VIEW taskmaster.task_history AS
SELECT taskmaster.id_text(task.id) AS task,
       taskmaster.state_name(task.state) AS state,
       contract.namespace, contract.queue, contract.kind, task.name, contract.priority,
       task.attempts, contract.attempts_max, task.late,
       taskmaster.id_time(task.id) AS submitted_at, task.started_at, task.finished_at, task.deadline_at,
       task.error_code, task.error, task.payload, task.result, task.log_tail,
       taskmaster.id_text(task.workflow) AS workflow,
       task.id, task.cluster, task.partition, task.number,
       contract.restartable,
       taskmaster.id_text((task.particulars ->> 'memo_of')::uuid) AS memo_of,
       task.particulars ->> 'unique_key' AS unique_key,
       task.particulars ->> 'concurrency_key' AS concurrency_key,
       task.particulars ->> 'note' AS note
FROM taskmaster.final_task AS task
JOIN taskmaster.contract USING (contract)
WHERE NOT EXISTS (
    SELECT FROM taskmaster.final_task AS later
    WHERE later.id = task.id AND (later.cluster, later.number) > (task.cluster, task.number));

ALTER TABLE taskmaster.queue_setting ADD COLUMN weight int4 NOT NULL DEFAULT 1;
COMMENT ON COLUMN taskmaster.queue_setting.weight IS 'Its part of the workers that it shares with other queues, against theirs.';

CREATE OR REPLACE VIEW taskmaster.queue_config AS
SELECT DISTINCT ON (cluster, namespace, queue)
       namespace, queue, paused, draining,
       nullif(rate_milli_per_s, 0) / 1000.0 AS rate_per_s, rate_burst, nullif(concurrency, 0) AS concurrency,
       nullif(depth_max, 0) AS depth_max, retention_ms * interval '1 ms' AS retention,
       CASE WHEN flags_deadlines THEN 'flag' ELSE 'expire' END AS at_deadline, policy, at, cluster,
       nullif(refuse_permille, 0) / 1000.0 AS refuses_under, restarts_off & 1 = 0 AS speculation, restarts_off & 2 = 0 AS preemption,
       restarts_off & 4 = 0 AS giving_up, restarts_off & 8 = 0 AS contention, weight
FROM taskmaster.queue_setting
ORDER BY cluster, namespace, queue, at DESC, partition;
