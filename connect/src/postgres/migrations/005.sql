-- Version 5: the bytes of the states that tasks saved, in chunks that tasks and versions share.

ALTER TABLE taskmaster.final_task ADD COLUMN chunks bytea[];
COMMENT ON COLUMN taskmaster.final_task.chunks IS
    'Digests of the chunks that the versions of the state are made of, or NULL: the bytes are in state_chunk.';

CREATE TABLE taskmaster.state_chunk (
    cluster   int4 NOT NULL,
    partition int4 NOT NULL,
    digest    bytea NOT NULL,
    day       date NOT NULL,
    bytes     bytea NOT NULL,
    PRIMARY KEY (cluster, partition, digest)
);
CREATE INDEX state_chunk_day ON taskmaster.state_chunk (day);
COMMENT ON TABLE taskmaster.state_chunk IS
    'Chunks of states by content (BLAKE3), each once in a partition of a cluster, and the last day of tasks that need it: it goes with that day.';

CREATE FUNCTION taskmaster.state_bytes(shown text, wanted int8) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT (SELECT CASE WHEN count(*) = count(chunk.bytes)
                        THEN coalesce(string_agg(chunk.bytes, ''::bytea ORDER BY run.at, place), ''::bytea) END
            FROM jsonb_array_elements(saved.document->'pieces') WITH ORDINALITY AS run (pieces, at)
            CROSS JOIN LATERAL generate_series((run.pieces->>0)::int4 + 1, (run.pieces->>0)::int4 + (run.pieces->>1)::int4) AS place
            LEFT JOIN taskmaster.state_chunk AS chunk
              ON chunk.cluster = saved.cluster AND chunk.partition = saved.partition AND chunk.digest = saved.chunks[place])
    FROM (SELECT task.cluster, task.partition, task.chunks, version.document
          FROM taskmaster.final_task AS task
          CROSS JOIN LATERAL jsonb_array_elements(task.versions) AS version (document)
          WHERE task.id = taskmaster.id_of(shown) AND (version.document->>'number')::int8 = wanted AND version.document ? 'pieces'
            AND NOT EXISTS (
              SELECT FROM taskmaster.final_task AS later
              WHERE later.id = task.id AND (later.cluster, later.number) > (task.cluster, task.number))) AS saved
$$;
COMMENT ON FUNCTION taskmaster.state_bytes IS 'The state that a finished task saved as a version, or NULL if the bytes of a part of it are not there.';

COMMENT ON VIEW taskmaster.state_versions IS
    'The versions of the states of finished tasks, as each task ended last: branches and tags that name them. Their bytes: state_bytes.';
