-- Version 7: whether attempts of restartable tasks are given up, and tasks kept apart that slow each other down.

COMMENT ON COLUMN taskmaster.queue_setting.restarts_off IS
    'What is not done: of attempts of restartable tasks 1 a second one beside a late one, 2 ending them for a higher priority, 4 giving them up for shorter tasks; and 8 keeping tasks apart that slow each other down; the sum of these.';

CREATE OR REPLACE VIEW taskmaster.queue_config AS
SELECT DISTINCT ON (cluster, namespace, queue)
       namespace, queue, paused, draining,
       nullif(rate_milli_per_s, 0) / 1000.0 AS rate_per_s, rate_burst, nullif(concurrency, 0) AS concurrency,
       nullif(depth_max, 0) AS depth_max, retention_ms * interval '1 ms' AS retention,
       CASE WHEN flags_deadlines THEN 'flag' ELSE 'expire' END AS at_deadline, policy, at, cluster,
       nullif(refuse_permille, 0) / 1000.0 AS refuses_under, restarts_off & 1 = 0 AS speculation, restarts_off & 2 = 0 AS preemption,
       restarts_off & 4 = 0 AS giving_up, restarts_off & 8 = 0 AS contention
FROM taskmaster.queue_setting
ORDER BY cluster, namespace, queue, at DESC, partition;
