-- Every statement of the SQLite driver, whole and named. {queue} and {dead} are the quoted table names and
-- {index} the stem of index names; they are filled in once, when the file is loaded. Arguments are bound.
-- "rows" and "ids" are JSON arrays. Instants are Unix seconds by the host's clock: SQLite has had
-- unixepoch('subsec') only since 3.42, so they come from julianday('now'). unbase64() is ours, see sqlite.py.

-- name: schema
CREATE TABLE IF NOT EXISTS {queue} (
    id text PRIMARY KEY NOT NULL,
    queue_name text NOT NULL,
    task text NOT NULL,
    payload blob NOT NULL,
    priority integer NOT NULL,
    status text NOT NULL,
    suspect integer NOT NULL DEFAULT 0,
    current_attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    receipt integer,
    visibility_timeout real NOT NULL,
    created_at real NOT NULL,
    available_at real NOT NULL,
    locked_until real,
    started_at real,
    finished_at real,
    worker text,
    correlation_id text,
    result blob,
    error_type text,
    error_message text,
    error_traceback text,
    first_failed_at real,
    last_failed_at real
);
CREATE INDEX IF NOT EXISTS {index}_pending ON {queue} (queue_name, suspect, priority DESC, id) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS {index}_scheduled ON {queue} (queue_name, available_at) WHERE status = 'scheduled';
CREATE INDEX IF NOT EXISTS {index}_processing ON {queue} (queue_name, locked_until) WHERE status = 'processing';
CREATE TABLE IF NOT EXISTS {dead} (
    id text PRIMARY KEY NOT NULL,
    queue_name text NOT NULL,
    task text NOT NULL,
    payload blob NOT NULL,
    priority integer NOT NULL,
    current_attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    visibility_timeout real NOT NULL,
    created_at real NOT NULL,
    started_at real,
    finished_at real NOT NULL,
    worker text,
    correlation_id text,
    error_type text NOT NULL,
    error_message text NOT NULL,
    error_traceback text NOT NULL,
    first_failed_at real NOT NULL,
    last_failed_at real NOT NULL
);

-- name: check
SELECT 1 FROM {queue}, {dead} LIMIT 0;

-- name: enqueue
INSERT INTO {queue} (id, queue_name, task, payload, priority, status, max_attempts, visibility_timeout,
                     created_at, available_at, correlation_id)
SELECT value ->> 'id', value ->> 'queue', value ->> 'task', unbase64(value ->> 'payload'), value ->> 'priority',
       CASE WHEN coalesce(value ->> 'available_at', now + (value ->> 'delay')) > now THEN 'scheduled' ELSE 'pending' END,
       value ->> 'max_attempts', value ->> 'visibility_timeout', value ->> 'created_at',
       coalesce(value ->> 'available_at', now + (value ->> 'delay')), value ->> 'correlation_id'
FROM json_each(%(rows)s), (SELECT (julianday('now') - 2440587.5) * 86400.0 AS now)
WHERE NOT EXISTS (SELECT 1 FROM {dead} AS d WHERE d.id = value ->> 'id')
ON CONFLICT (id) DO NOTHING;

-- name: claim
UPDATE {queue}
SET status = 'processing', current_attempt = current_attempt + 1, receipt = %(receipt)s, worker = %(worker)s,
    started_at = (julianday('now') - 2440587.5) * 86400.0,
    locked_until = (julianday('now') - 2440587.5) * 86400.0 + visibility_timeout
WHERE id IN (
    SELECT id FROM {queue}
    WHERE queue_name = %(queue)s AND suspect = %(suspect)s AND status = 'pending'
    ORDER BY priority DESC, id
    LIMIT %(limit)s)
RETURNING id, payload, current_attempt, receipt, visibility_timeout, priority;

-- name: ack
DELETE FROM {queue}
WHERE (id, receipt) IN (SELECT value ->> 'id', value ->> 'receipt' FROM json_each(%(rows)s)) AND status = 'processing'
RETURNING id, receipt;

-- name: complete
UPDATE {queue}
SET status = 'completed', finished_at = (julianday('now') - 2440587.5) * 86400.0, locked_until = NULL, suspect = 0,
    result = unbase64(r.value ->> 'result')
FROM json_each(%(rows)s) AS r
WHERE {queue}.id = r.value ->> 'id' AND receipt = r.value ->> 'receipt' AND status = 'processing'
RETURNING {queue}.id, {queue}.receipt;

-- name: retry
UPDATE {queue}
SET status = CASE WHEN r.value ->> 'delay' > 0 THEN 'scheduled' ELSE 'pending' END,
    available_at = (julianday('now') - 2440587.5) * 86400.0 + (r.value ->> 'delay'),
    locked_until = NULL, suspect = r.value ->> 'suspect',
    error_type = r.value ->> 'error_type', error_message = r.value ->> 'error_message',
    error_traceback = r.value ->> 'error_traceback',
    first_failed_at = coalesce(first_failed_at, (julianday('now') - 2440587.5) * 86400.0),
    last_failed_at = (julianday('now') - 2440587.5) * 86400.0
FROM json_each(%(rows)s) AS r
WHERE {queue}.id = r.value ->> 'id' AND receipt = r.value ->> 'receipt' AND status = 'processing'
RETURNING {queue}.id, {queue}.receipt;

-- name: release
UPDATE {queue}
SET status = 'pending', current_attempt = current_attempt - 1, locked_until = NULL
WHERE (id, receipt) IN (SELECT value ->> 'id', value ->> 'receipt' FROM json_each(%(rows)s)) AND status = 'processing'
RETURNING id, receipt;

-- name: extend
UPDATE {queue}
SET locked_until = (julianday('now') - 2440587.5) * 86400.0 + visibility_timeout
WHERE (id, receipt) IN (SELECT value ->> 'id', value ->> 'receipt' FROM json_each(%(rows)s)) AND status = 'processing'
RETURNING id, receipt;

-- name: hold
SELECT id, receipt FROM {queue}
WHERE (id, receipt) IN (SELECT value ->> 'id', value ->> 'receipt' FROM json_each(%(rows)s)) AND status = 'processing';

-- name: bury
INSERT INTO {dead} (id, queue_name, task, payload, priority, current_attempt, max_attempts, visibility_timeout,
                    created_at, started_at, finished_at, worker, correlation_id,
                    error_type, error_message, error_traceback, first_failed_at, last_failed_at)
SELECT t.id, t.queue_name, t.task, t.payload, t.priority, t.current_attempt, t.max_attempts, t.visibility_timeout,
       t.created_at, t.started_at, now, t.worker, t.correlation_id,
       r.value ->> 'error_type', r.value ->> 'error_message', r.value ->> 'error_traceback',
       coalesce(t.first_failed_at, now), now
FROM json_each(%(rows)s) AS r
JOIN {queue} AS t ON t.id = r.value ->> 'id',
     (SELECT (julianday('now') - 2440587.5) * 86400.0 AS now)
WHERE true
ON CONFLICT (id) DO NOTHING;

-- name: remove
DELETE FROM {queue} WHERE id IN (SELECT value FROM json_each(%(ids)s));

-- name: due
SELECT q.value,
       (SELECT available_at - (julianday('now') - 2440587.5) * 86400.0 FROM {queue}
        WHERE status = 'scheduled' AND queue_name = q.value ORDER BY available_at LIMIT 1),
       (SELECT locked_until - (julianday('now') - 2440587.5) * 86400.0 FROM {queue}
        WHERE status = 'processing' AND queue_name = q.value ORDER BY locked_until LIMIT 1)
FROM json_each(%(queues)s) AS q;

-- name: promote
UPDATE {queue} SET status = 'pending'
WHERE id IN (
    SELECT id FROM {queue}
    WHERE status = 'scheduled' AND queue_name = %(queue)s
      AND available_at <= (julianday('now') - 2440587.5) * 86400.0
    ORDER BY available_at
    LIMIT %(limit)s)
RETURNING queue_name, 1;

-- name: expired
SELECT id, queue_name, payload, current_attempt, max_attempts, receipt, visibility_timeout, worker
FROM {queue}
WHERE status = 'processing' AND queue_name = %(queue)s
  AND locked_until < (julianday('now') - 2440587.5) * 86400.0
ORDER BY locked_until
LIMIT %(limit)s;

-- name: stats
SELECT queue_name, status, count(*), (julianday('now') - 2440587.5) * 86400.0 - min(available_at)
FROM {queue} GROUP BY queue_name, status
UNION ALL
SELECT queue_name, 'dead', count(*), NULL FROM {dead} GROUP BY queue_name;

-- name: purge
DELETE FROM {queue}
WHERE id IN (SELECT id FROM {queue} WHERE queue_name = %(queue)s AND status IN ('pending', 'scheduled')
             LIMIT %(limit)s)
RETURNING id;

-- name: floor
SELECT id FROM {queue} WHERE id < %(before)s ORDER BY id DESC LIMIT 1 OFFSET %(scan)s;

-- name: floor_dead
SELECT id FROM {dead} WHERE id < %(before)s ORDER BY id DESC LIMIT 1 OFFSET %(scan)s;

-- name: find
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload, created_at, available_at,
       locked_until, started_at, finished_at, worker, correlation_id, result,
       error_type, error_message, error_traceback, first_failed_at, last_failed_at
FROM {queue}
WHERE id < %(before)s AND id >= %(floor)s
  AND status IN (SELECT value FROM json_each(%(statuses)s))
  AND (%(queue)s IS NULL OR queue_name = %(queue)s)
  AND (%(task)s IS NULL OR task = %(task)s)
  AND (%(created_after)s IS NULL OR created_at >= %(created_after)s)
  AND (%(created_before)s IS NULL OR created_at < %(created_before)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: find_processing
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload, created_at, available_at,
       locked_until, started_at, finished_at, worker, correlation_id, result,
       error_type, error_message, error_traceback, first_failed_at, last_failed_at
FROM (SELECT * FROM {queue} WHERE status = 'processing' LIMIT %(scan)s)
WHERE id < %(before)s
  AND (%(queue)s IS NULL OR queue_name = %(queue)s)
  AND (%(task)s IS NULL OR task = %(task)s)
  AND (%(created_after)s IS NULL OR created_at >= %(created_after)s)
  AND (%(created_before)s IS NULL OR created_at < %(created_before)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: find_dead
SELECT id, queue_name, task, 'dead', priority, current_attempt, max_attempts, payload, created_at, NULL,
       NULL, started_at, finished_at, worker, correlation_id, NULL,
       error_type, error_message, error_traceback, first_failed_at, last_failed_at
FROM {dead}
WHERE id < %(before)s AND id >= %(floor)s
  AND (%(queue)s IS NULL OR queue_name = %(queue)s)
  AND (%(task)s IS NULL OR task = %(task)s)
  AND (%(created_after)s IS NULL OR created_at >= %(created_after)s)
  AND (%(created_before)s IS NULL OR created_at < %(created_before)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: get
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload, created_at, available_at,
       locked_until, started_at, finished_at, worker, correlation_id, result,
       error_type, error_message, error_traceback, first_failed_at, last_failed_at
FROM {queue} WHERE id IN (SELECT value FROM json_each(%(ids)s))
UNION ALL
SELECT id, queue_name, task, 'dead', priority, current_attempt, max_attempts, payload, created_at, NULL,
       NULL, started_at, finished_at, worker, correlation_id, NULL,
       error_type, error_message, error_traceback, first_failed_at, last_failed_at
FROM {dead} WHERE id IN (SELECT value FROM json_each(%(ids)s));

-- name: hold_dead
SELECT id FROM {dead} WHERE id IN (SELECT value FROM json_each(%(ids)s));

-- name: revive
INSERT INTO {queue} (id, queue_name, task, payload, priority, status, max_attempts, visibility_timeout,
                     created_at, available_at, correlation_id)
SELECT id, queue_name, task, payload, priority, 'pending', max_attempts, visibility_timeout,
       created_at, (julianday('now') - 2440587.5) * 86400.0, correlation_id
FROM {dead} WHERE id IN (SELECT value FROM json_each(%(ids)s))
ON CONFLICT (id) DO NOTHING;

-- name: forget
DELETE FROM {dead} WHERE id IN (SELECT value FROM json_each(%(ids)s)) RETURNING id;

-- name: cancel_keep
UPDATE {queue} SET status = 'cancelled', finished_at = (julianday('now') - 2440587.5) * 86400.0
WHERE id IN (SELECT value FROM json_each(%(ids)s)) AND status IN ('pending', 'scheduled')
RETURNING id;

-- name: cancel_remove
DELETE FROM {queue}
WHERE id IN (SELECT value FROM json_each(%(ids)s)) AND status IN ('pending', 'scheduled')
RETURNING id;

-- name: delete
DELETE FROM {queue}
WHERE id IN (SELECT value FROM json_each(%(ids)s)) AND status <> 'processing'
RETURNING id;
