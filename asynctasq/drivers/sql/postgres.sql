-- Every statement of the PostgreSQL driver, whole and named. {queue} and {dead} are the quoted table names and
-- {index} the stem of index names; they are filled in once, when the file is loaded. Arguments are bound.
-- "rows" and "ids" are JSON arrays. The clock is the server's, and a moving one: clock_timestamp(), not now().

-- name: schema
CREATE TABLE IF NOT EXISTS {queue} (
    id varchar(64) COLLATE "C" PRIMARY KEY,
    queue_name varchar(128) COLLATE "C" NOT NULL,
    task varchar(255) NOT NULL,
    payload bytea NOT NULL,
    priority smallint NOT NULL,
    status varchar(10) NOT NULL,
    suspect boolean NOT NULL DEFAULT false,
    current_attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    receipt bigint,
    visibility_timeout double precision NOT NULL,
    created_at timestamptz NOT NULL,
    available_at timestamptz NOT NULL,
    locked_until timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    worker varchar(100),
    correlation_id varchar(255),
    result bytea,
    error_type varchar(255),
    error_message text,
    error_traceback text,
    first_failed_at timestamptz,
    last_failed_at timestamptz
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX IF NOT EXISTS {index}_pending ON {queue} (queue_name, suspect, priority DESC, id) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS {index}_scheduled ON {queue} (queue_name, available_at) WHERE status = 'scheduled';
CREATE INDEX IF NOT EXISTS {index}_processing ON {queue} (queue_name, locked_until) WHERE status = 'processing';
CREATE TABLE IF NOT EXISTS {dead} (
    id varchar(64) COLLATE "C" PRIMARY KEY,
    queue_name varchar(128) COLLATE "C" NOT NULL,
    task varchar(255) NOT NULL,
    payload bytea NOT NULL,
    priority smallint NOT NULL,
    current_attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    visibility_timeout double precision NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz NOT NULL,
    worker varchar(100),
    correlation_id varchar(255),
    error_type varchar(255) NOT NULL,
    error_message text NOT NULL,
    error_traceback text NOT NULL,
    first_failed_at timestamptz NOT NULL,
    last_failed_at timestamptz NOT NULL
);

-- name: check
SELECT 1 FROM {queue}, {dead} LIMIT 0;

-- name: enqueue
-- One NOTIFY for each queue, not for each row: it takes a lock on the whole database at commit.
WITH fresh AS (
    INSERT INTO {queue} (id, queue_name, task, payload, priority, status, max_attempts, visibility_timeout,
                         created_at, available_at, correlation_id)
    SELECT r.id, r.queue, r.task, decode(r.payload, 'base64'), r.priority,
           CASE WHEN due.at > clock_timestamp() THEN 'scheduled' ELSE 'pending' END,
           r.max_attempts, r.visibility_timeout, to_timestamp(r.created_at), due.at, r.correlation_id
    FROM json_to_recordset(%(rows)s::json) AS r(
            id text, queue text, task text, payload text, priority smallint, max_attempts integer,
            visibility_timeout double precision, created_at double precision, delay double precision,
            available_at double precision, correlation_id text)
    CROSS JOIN LATERAL (
        SELECT coalesce(to_timestamp(r.available_at), clock_timestamp() + r.delay * interval '1 second') AS at) AS due
    WHERE NOT EXISTS (SELECT 1 FROM {dead} AS d WHERE d.id = r.id)
    ON CONFLICT (id) DO NOTHING
    RETURNING queue_name, status)
SELECT pg_notify('asynctasq', queue_name) FROM (SELECT DISTINCT queue_name FROM fresh WHERE status = 'pending') AS q;

-- name: claim
WITH chosen AS MATERIALIZED (
    SELECT id FROM {queue}
    WHERE queue_name = %(queue)s AND suspect = %(suspect)s AND status = 'pending'
    ORDER BY priority DESC, id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED)
UPDATE {queue} AS t
SET status = 'processing', current_attempt = t.current_attempt + 1, receipt = %(receipt)s, worker = %(worker)s,
    started_at = clock_timestamp(),
    locked_until = clock_timestamp() + t.visibility_timeout * interval '1 second'
FROM chosen
WHERE t.id = chosen.id
RETURNING t.id, t.payload, t.current_attempt, t.receipt, t.visibility_timeout, t.priority;

-- name: ack
DELETE FROM {queue} AS t
USING json_to_recordset(%(rows)s::json) AS r(id text, receipt bigint)
WHERE t.id = r.id AND t.receipt = r.receipt AND t.status = 'processing'
RETURNING t.id, t.receipt;

-- name: complete
UPDATE {queue} AS t
SET status = 'completed', finished_at = clock_timestamp(), locked_until = NULL, suspect = false,
    result = decode(r.result, 'base64')
FROM json_to_recordset(%(rows)s::json) AS r(id text, receipt bigint, result text)
WHERE t.id = r.id AND t.receipt = r.receipt AND t.status = 'processing'
RETURNING t.id, t.receipt;

-- name: retry
WITH moved AS (
    UPDATE {queue} AS t
    SET status = CASE WHEN r.delay > 0 THEN 'scheduled' ELSE 'pending' END,
        available_at = clock_timestamp() + r.delay * interval '1 second',
        locked_until = NULL, suspect = r.suspect,
        error_type = r.error_type, error_message = r.error_message, error_traceback = r.error_traceback,
        first_failed_at = coalesce(t.first_failed_at, clock_timestamp()), last_failed_at = clock_timestamp()
    FROM json_to_recordset(%(rows)s::json) AS r(
            id text, receipt bigint, delay double precision, suspect boolean,
            error_type text, error_message text, error_traceback text)
    WHERE t.id = r.id AND t.receipt = r.receipt AND t.status = 'processing'
    RETURNING t.id, t.receipt, t.queue_name, t.status),
told AS (
    SELECT pg_notify('asynctasq', queue_name)
    FROM (SELECT DISTINCT queue_name FROM moved WHERE status = 'pending') AS q)
SELECT moved.id, moved.receipt FROM moved, (SELECT count(*) FROM told) AS all_told;

-- name: release
WITH moved AS (
    UPDATE {queue} AS t
    SET status = 'pending', current_attempt = t.current_attempt - 1, locked_until = NULL
    FROM json_to_recordset(%(rows)s::json) AS r(id text, receipt bigint)
    WHERE t.id = r.id AND t.receipt = r.receipt AND t.status = 'processing'
    RETURNING t.id, t.receipt, t.queue_name, t.status),
told AS (
    SELECT pg_notify('asynctasq', queue_name)
    FROM (SELECT DISTINCT queue_name FROM moved WHERE status = 'pending') AS q)
SELECT moved.id, moved.receipt FROM moved, (SELECT count(*) FROM told) AS all_told;

-- name: extend
UPDATE {queue} AS t
SET locked_until = clock_timestamp() + t.visibility_timeout * interval '1 second'
FROM json_to_recordset(%(rows)s::json) AS r(id text, receipt bigint)
WHERE t.id = r.id AND t.receipt = r.receipt AND t.status = 'processing'
RETURNING t.id, t.receipt;

-- name: hold
SELECT t.id, t.receipt
FROM {queue} AS t
JOIN json_to_recordset(%(rows)s::json) AS r(id text, receipt bigint) ON t.id = r.id
WHERE t.receipt = r.receipt AND t.status = 'processing'
ORDER BY t.id
FOR UPDATE OF t;

-- name: bury
INSERT INTO {dead} (id, queue_name, task, payload, priority, current_attempt, max_attempts, visibility_timeout,
                    created_at, started_at, finished_at, worker, correlation_id,
                    error_type, error_message, error_traceback, first_failed_at, last_failed_at)
SELECT t.id, t.queue_name, t.task, t.payload, t.priority, t.current_attempt, t.max_attempts, t.visibility_timeout,
       t.created_at, t.started_at, clock_timestamp(), t.worker, t.correlation_id,
       r.error_type, r.error_message, r.error_traceback,
       coalesce(t.first_failed_at, clock_timestamp()), clock_timestamp()
FROM {queue} AS t
JOIN json_to_recordset(%(rows)s::json) AS r(id text, error_type text, error_message text, error_traceback text)
    ON t.id = r.id
ON CONFLICT (id) DO NOTHING;

-- name: remove
DELETE FROM {queue} AS t USING json_array_elements_text(%(ids)s::json) AS i(id) WHERE t.id = i.id;

-- name: due
SELECT q.name,
       (SELECT extract(epoch FROM available_at - clock_timestamp())::float8 FROM {queue}
        WHERE status = 'scheduled' AND queue_name = q.name ORDER BY available_at LIMIT 1),
       (SELECT extract(epoch FROM locked_until - clock_timestamp())::float8 FROM {queue}
        WHERE status = 'processing' AND queue_name = q.name ORDER BY locked_until LIMIT 1)
FROM json_array_elements_text(%(queues)s::json) AS q(name);

-- name: promote
WITH chosen AS MATERIALIZED (
    SELECT id FROM {queue}
    WHERE status = 'scheduled' AND queue_name = %(queue)s AND available_at <= (SELECT clock_timestamp())
    ORDER BY available_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED),
moved AS (
    UPDATE {queue} AS t SET status = 'pending' FROM chosen WHERE t.id = chosen.id RETURNING t.queue_name)
SELECT pg_notify('asynctasq', queue_name), n FROM (SELECT queue_name, count(*) AS n FROM moved GROUP BY 1) AS q;

-- name: expired
SELECT id, queue_name, payload, current_attempt, max_attempts, receipt, visibility_timeout, worker
FROM {queue}
WHERE status = 'processing' AND queue_name = %(queue)s AND locked_until < (SELECT clock_timestamp())
ORDER BY locked_until
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: stats
SELECT queue_name, status, count(*),
       extract(epoch FROM clock_timestamp() - min(available_at))::float8
FROM {queue} GROUP BY queue_name, status
UNION ALL
SELECT queue_name, 'dead', count(*), NULL FROM {dead} GROUP BY queue_name;

-- name: purge
DELETE FROM {queue}
WHERE id IN (SELECT id FROM {queue} WHERE queue_name = %(queue)s AND status IN ('pending', 'scheduled')
             LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
RETURNING id;

-- name: floor
SELECT id FROM {queue} WHERE id < %(before)s ORDER BY id DESC OFFSET %(scan)s LIMIT 1;

-- name: floor_dead
SELECT id FROM {dead} WHERE id < %(before)s ORDER BY id DESC OFFSET %(scan)s LIMIT 1;

-- name: find
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload,
       extract(epoch FROM created_at)::float8, extract(epoch FROM available_at)::float8,
       extract(epoch FROM locked_until)::float8, extract(epoch FROM started_at)::float8,
       extract(epoch FROM finished_at)::float8, worker, correlation_id, result,
       error_type, error_message, error_traceback,
       extract(epoch FROM first_failed_at)::float8, extract(epoch FROM last_failed_at)::float8
FROM {queue}
WHERE id < %(before)s AND id >= %(floor)s
  AND %(statuses)s::jsonb ? status
  AND (%(queue)s::text IS NULL OR queue_name = %(queue)s)
  AND (%(task)s::text IS NULL OR task = %(task)s)
  AND (%(created_after)s::float8 IS NULL OR created_at >= to_timestamp(%(created_after)s))
  AND (%(created_before)s::float8 IS NULL OR created_at < to_timestamp(%(created_before)s))
ORDER BY id DESC
LIMIT %(limit)s;

-- name: find_processing
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload,
       extract(epoch FROM created_at)::float8, extract(epoch FROM available_at)::float8,
       extract(epoch FROM locked_until)::float8, extract(epoch FROM started_at)::float8,
       extract(epoch FROM finished_at)::float8, worker, correlation_id, result,
       error_type, error_message, error_traceback,
       extract(epoch FROM first_failed_at)::float8, extract(epoch FROM last_failed_at)::float8
FROM (SELECT * FROM {queue} WHERE status = 'processing' LIMIT %(scan)s) AS t
WHERE id < %(before)s
  AND (%(queue)s::text IS NULL OR queue_name = %(queue)s)
  AND (%(task)s::text IS NULL OR task = %(task)s)
  AND (%(created_after)s::float8 IS NULL OR created_at >= to_timestamp(%(created_after)s))
  AND (%(created_before)s::float8 IS NULL OR created_at < to_timestamp(%(created_before)s))
ORDER BY id DESC
LIMIT %(limit)s;

-- name: find_dead
SELECT id, queue_name, task, 'dead', priority, current_attempt, max_attempts, payload,
       extract(epoch FROM created_at)::float8, NULL, NULL, extract(epoch FROM started_at)::float8,
       extract(epoch FROM finished_at)::float8, worker, correlation_id, NULL,
       error_type, error_message, error_traceback,
       extract(epoch FROM first_failed_at)::float8, extract(epoch FROM last_failed_at)::float8
FROM {dead}
WHERE id < %(before)s AND id >= %(floor)s
  AND (%(queue)s::text IS NULL OR queue_name = %(queue)s)
  AND (%(task)s::text IS NULL OR task = %(task)s)
  AND (%(created_after)s::float8 IS NULL OR created_at >= to_timestamp(%(created_after)s))
  AND (%(created_before)s::float8 IS NULL OR created_at < to_timestamp(%(created_before)s))
ORDER BY id DESC
LIMIT %(limit)s;

-- name: get
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload,
       extract(epoch FROM created_at)::float8, extract(epoch FROM available_at)::float8,
       extract(epoch FROM locked_until)::float8, extract(epoch FROM started_at)::float8,
       extract(epoch FROM finished_at)::float8, worker, correlation_id, result,
       error_type, error_message, error_traceback,
       extract(epoch FROM first_failed_at)::float8, extract(epoch FROM last_failed_at)::float8
FROM {queue} WHERE id IN (SELECT json_array_elements_text(%(ids)s::json))
UNION ALL
SELECT id, queue_name, task, 'dead', priority, current_attempt, max_attempts, payload,
       extract(epoch FROM created_at)::float8, NULL, NULL, extract(epoch FROM started_at)::float8,
       extract(epoch FROM finished_at)::float8, worker, correlation_id, NULL,
       error_type, error_message, error_traceback,
       extract(epoch FROM first_failed_at)::float8, extract(epoch FROM last_failed_at)::float8
FROM {dead} WHERE id IN (SELECT json_array_elements_text(%(ids)s::json));

-- name: hold_dead
SELECT d.id FROM {dead} AS d WHERE d.id IN (SELECT json_array_elements_text(%(ids)s::json))
ORDER BY d.id
FOR UPDATE;

-- name: revive
WITH fresh AS (
    INSERT INTO {queue} (id, queue_name, task, payload, priority, status, max_attempts, visibility_timeout,
                         created_at, available_at, correlation_id)
    SELECT id, queue_name, task, payload, priority, 'pending', max_attempts, visibility_timeout,
           created_at, clock_timestamp(), correlation_id
    FROM {dead} WHERE id IN (SELECT json_array_elements_text(%(ids)s::json))
    ON CONFLICT (id) DO NOTHING
    RETURNING queue_name)
SELECT pg_notify('asynctasq', queue_name) FROM (SELECT DISTINCT queue_name FROM fresh) AS q;

-- name: forget
DELETE FROM {dead} WHERE id IN (SELECT json_array_elements_text(%(ids)s::json)) RETURNING id;

-- name: cancel_keep
UPDATE {queue} SET status = 'cancelled', finished_at = clock_timestamp()
WHERE id IN (SELECT json_array_elements_text(%(ids)s::json)) AND status IN ('pending', 'scheduled')
RETURNING id;

-- name: cancel_remove
DELETE FROM {queue}
WHERE id IN (SELECT json_array_elements_text(%(ids)s::json)) AND status IN ('pending', 'scheduled')
RETURNING id;

-- name: delete
DELETE FROM {queue}
WHERE id IN (SELECT json_array_elements_text(%(ids)s::json)) AND status <> 'processing'
RETURNING id;
