-- Version 4: the order of a partition's numbers is kept a batch at a time: an index by task cost as much as the row itself.

CREATE TABLE taskmaster.stretch (
    cluster   int4 NOT NULL,
    partition int4 NOT NULL,
    behind    int8 NOT NULL,
    first_at  timestamptz NOT NULL,
    last_at   timestamptz NOT NULL,
    tasks     bytea NOT NULL,
    PRIMARY KEY (cluster, partition, behind)
);
ALTER TABLE taskmaster.stretch ALTER COLUMN tasks SET STORAGE EXTERNAL;
COMMENT ON TABLE taskmaster.stretch IS
    'The final tasks of a batch in the order of their numbers: 24 bytes each, the number and the id, the most significant byte first.';

INSERT INTO taskmaster.stretch (cluster, partition, behind, first_at, last_at, tasks)
SELECT cluster, partition, min(number) - 1, min(finished_at), max(finished_at),
       string_agg(int8send(number) || uuid_send(id), '' ORDER BY number)
FROM taskmaster.final_task
GROUP BY cluster, partition, number / 1000;

DROP INDEX taskmaster.final_task_number;
