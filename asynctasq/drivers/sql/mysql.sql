-- Every statement of the MySQL driver, whole and named. {queue} and {dead} are the quoted table names and
-- {index} the stem of index names. They are filled in once, when the file is loaded. Arguments are bound.
-- "rows", "ids" and "held" are JSON arrays.
--
-- There is no UPDATE ... RETURNING: where rows are asked for, the first of two statements selects and locks them, and
-- the second changes them, in one transaction. It is given the ids of the first as "held".
--
-- STRAIGHT_JOIN reads the JSON array first and then rows by their key, whatever the statistics say. FORCE INDEX reads
-- an index in its order, so that nothing is sorted: what is sorted is locked first, returned or not.
-- utf8mb4_bin, for names that differ in case are different. LONGBLOB, for a BLOB ends at 65,535 bytes.
-- urgency is there because MariaDB before 10.8 takes DESC in an index and ignores it.

-- name: schema
CREATE TABLE IF NOT EXISTS {queue} (
    id varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    queue_name varchar(128) NOT NULL,
    task varchar(255) NOT NULL,
    payload longblob NOT NULL,
    priority smallint NOT NULL,
    urgency smallint GENERATED ALWAYS AS (-priority) STORED,
    status varchar(10) NOT NULL,
    suspect boolean NOT NULL DEFAULT false,
    current_attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    receipt bigint,
    visibility_timeout double NOT NULL,
    created_at datetime(6) NOT NULL,
    available_at datetime(6) NOT NULL,
    locked_until datetime(6),
    started_at datetime(6),
    finished_at datetime(6),
    worker varchar(100),
    correlation_id varchar(255),
    result longblob,
    error_type varchar(255),
    error_message text,
    error_traceback mediumtext,
    first_failed_at datetime(6),
    last_failed_at datetime(6),
    KEY {index}_pending (queue_name, suspect, status, urgency, id),
    KEY {index}_scheduled (queue_name, status, available_at),
    KEY {index}_processing (status, queue_name, locked_until)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE IF NOT EXISTS {dead} (
    id varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    queue_name varchar(128) NOT NULL,
    task varchar(255) NOT NULL,
    payload longblob NOT NULL,
    priority smallint NOT NULL,
    current_attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    visibility_timeout double NOT NULL,
    created_at datetime(6) NOT NULL,
    started_at datetime(6),
    finished_at datetime(6) NOT NULL,
    worker varchar(100),
    correlation_id varchar(255),
    error_type varchar(255) NOT NULL,
    error_message text NOT NULL,
    error_traceback mediumtext NOT NULL,
    first_failed_at datetime(6) NOT NULL,
    last_failed_at datetime(6) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- name: check
SELECT 1 FROM {queue}, {dead} LIMIT 0;

-- name: waiting
-- Whether a claim would find something. It locks nothing and is what an idle worker asks.
SELECT 1
FROM JSON_TABLE(%(queues)s, '$[*]' COLUMNS (name varchar(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$')) AS q
STRAIGHT_JOIN {queue} AS t FORCE INDEX ({index}_pending)
    ON t.queue_name = q.name AND t.suspect IN (false, true) AND t.status = 'pending'
LIMIT 1;

-- name: enqueue
INSERT INTO {queue} (id, queue_name, task, payload, priority, status, max_attempts, visibility_timeout,
                     created_at, available_at, correlation_id)
SELECT r.id, r.queue, r.task, FROM_BASE64(r.payload), r.priority,
       CASE WHEN r.due > UTC_TIMESTAMP(6) THEN 'scheduled' ELSE 'pending' END,
       r.max_attempts, r.visibility_timeout,
       TIMESTAMP'1970-01-01 00:00:00' + INTERVAL r.created_at * 1e6 MICROSECOND, r.due, r.correlation_id
FROM (
    SELECT j.*, COALESCE(TIMESTAMP'1970-01-01 00:00:00' + INTERVAL j.available_at * 1e6 MICROSECOND,
                         UTC_TIMESTAMP(6) + INTERVAL j.delay * 1e6 MICROSECOND) AS due
    FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id',
        queue varchar(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$.queue',
        task varchar(255) CHARACTER SET utf8mb4 PATH '$.task',
        payload longtext CHARACTER SET utf8mb4 PATH '$.payload',
        priority smallint PATH '$.priority', max_attempts integer PATH '$.max_attempts',
        visibility_timeout double PATH '$.visibility_timeout', created_at double PATH '$.created_at',
        delay double PATH '$.delay', available_at double PATH '$.available_at',
        correlation_id varchar(255) CHARACTER SET utf8mb4 PATH '$.correlation_id')) AS j) AS r
WHERE NOT EXISTS (SELECT 1 FROM {dead} AS d WHERE d.id = r.id)
ON DUPLICATE KEY UPDATE {queue}.id = {queue}.id;

-- name: claim
SELECT id, payload, current_attempt + 1, %(receipt)s, visibility_timeout, priority
FROM {queue} FORCE INDEX ({index}_pending)
WHERE queue_name = %(queue)s AND suspect = %(suspect)s AND status = 'pending'
ORDER BY urgency, id
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;
UPDATE JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id
SET t.status = 'processing', t.current_attempt = t.current_attempt + 1, t.receipt = %(receipt)s,
    t.worker = %(worker)s, t.started_at = UTC_TIMESTAMP(6),
    t.locked_until = UTC_TIMESTAMP(6) + INTERVAL t.visibility_timeout * 1e6 MICROSECOND;

-- name: ack
SELECT t.id, t.receipt
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
WHERE t.status = 'processing'
FOR UPDATE;
DELETE t
FROM JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id;

-- name: complete
SELECT t.id, t.receipt
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
WHERE t.status = 'processing'
FOR UPDATE;
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt',
        result longtext CHARACTER SET utf8mb4 PATH '$.result')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
SET t.status = 'completed', t.finished_at = UTC_TIMESTAMP(6), t.locked_until = NULL, t.suspect = false,
    t.result = FROM_BASE64(r.result)
WHERE t.status = 'processing';

-- name: retry
SELECT t.id, t.receipt
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
WHERE t.status = 'processing'
FOR UPDATE;
UPDATE JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt',
        delay double PATH '$.delay',
        suspect boolean PATH '$.suspect',
        error_type varchar(255) CHARACTER SET utf8mb4 PATH '$.error_type',
        error_message longtext CHARACTER SET utf8mb4 PATH '$.error_message',
        error_traceback longtext CHARACTER SET utf8mb4 PATH '$.error_traceback')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
SET t.status = CASE WHEN r.delay > 0 THEN 'scheduled' ELSE 'pending' END,
    t.available_at = UTC_TIMESTAMP(6) + INTERVAL r.delay * 1e6 MICROSECOND,
    t.locked_until = NULL, t.suspect = r.suspect,
    t.error_type = r.error_type, t.error_message = r.error_message, t.error_traceback = r.error_traceback,
    t.first_failed_at = COALESCE(t.first_failed_at, UTC_TIMESTAMP(6)), t.last_failed_at = UTC_TIMESTAMP(6)
WHERE t.status = 'processing';

-- name: release
SELECT t.id, t.receipt
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
WHERE t.status = 'processing'
FOR UPDATE;
UPDATE JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id
SET t.status = 'pending', t.current_attempt = t.current_attempt - 1, t.locked_until = NULL;

-- name: extend
SELECT t.id, t.receipt
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
WHERE t.status = 'processing'
FOR UPDATE;
UPDATE JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id
SET t.locked_until = UTC_TIMESTAMP(6) + INTERVAL t.visibility_timeout * 1e6 MICROSECOND;

-- name: hold
SELECT t.id, t.receipt
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id', receipt bigint PATH '$.receipt')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id AND t.receipt = r.receipt
WHERE t.status = 'processing'
FOR UPDATE;

-- name: bury
INSERT INTO {dead} (id, queue_name, task, payload, priority, current_attempt, max_attempts, visibility_timeout,
                    created_at, started_at, finished_at, worker, correlation_id,
                    error_type, error_message, error_traceback, first_failed_at, last_failed_at)
SELECT t.id, t.queue_name, t.task, t.payload, t.priority, t.current_attempt, t.max_attempts, t.visibility_timeout,
       t.created_at, t.started_at, UTC_TIMESTAMP(6), t.worker, t.correlation_id,
       r.error_type, r.error_message, r.error_traceback,
       COALESCE(t.first_failed_at, UTC_TIMESTAMP(6)), UTC_TIMESTAMP(6)
FROM JSON_TABLE(%(rows)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.id',
        error_type varchar(255) CHARACTER SET utf8mb4 PATH '$.error_type',
        error_message longtext CHARACTER SET utf8mb4 PATH '$.error_message',
        error_traceback longtext CHARACTER SET utf8mb4 PATH '$.error_traceback')) AS r
STRAIGHT_JOIN {queue} AS t ON t.id = r.id
ON DUPLICATE KEY UPDATE {dead}.id = {dead}.id;

-- name: remove
DELETE t
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {queue} AS t ON t.id = i.id;

-- name: due
SELECT q.name,
       (SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), available_at) / 1e6
        FROM {queue} FORCE INDEX ({index}_scheduled)
        WHERE status = 'scheduled' AND queue_name = q.name ORDER BY available_at LIMIT 1),
       (SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), locked_until) / 1e6
        FROM {queue} FORCE INDEX ({index}_processing)
        WHERE status = 'processing' AND queue_name = q.name ORDER BY locked_until LIMIT 1)
FROM JSON_TABLE(%(queues)s, '$[*]' COLUMNS (name varchar(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PATH '$')) AS q;

-- name: promote
SELECT id, 1
FROM {queue} FORCE INDEX ({index}_scheduled)
WHERE status = 'scheduled' AND queue_name = %(queue)s AND available_at <= UTC_TIMESTAMP(6)
ORDER BY available_at
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;
UPDATE JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id
SET t.status = 'pending';

-- name: expired
SELECT id, queue_name, payload, current_attempt, max_attempts, receipt, visibility_timeout, worker
FROM {queue} FORCE INDEX ({index}_processing)
WHERE status = 'processing' AND queue_name = %(queue)s AND locked_until < UTC_TIMESTAMP(6)
ORDER BY locked_until
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: stats
SELECT queue_name, status, count(*), TIMESTAMPDIFF(MICROSECOND, min(available_at), UTC_TIMESTAMP(6)) / 1e6
FROM {queue} GROUP BY queue_name, status
UNION ALL
SELECT queue_name, 'dead', count(*), NULL FROM {dead} GROUP BY queue_name;

-- name: purge
SELECT id
FROM {queue} FORCE INDEX ({index}_scheduled)
WHERE queue_name = %(queue)s AND status IN ('pending', 'scheduled')
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;
DELETE t
FROM JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id;

-- name: floor
SELECT id FROM {queue} WHERE id < %(before)s ORDER BY id DESC LIMIT 1 OFFSET %(scan)s;

-- name: floor_dead
SELECT id FROM {dead} WHERE id < %(before)s ORDER BY id DESC LIMIT 1 OFFSET %(scan)s;

-- name: find
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', created_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', available_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', locked_until) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', started_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', finished_at) / 1e6,
       worker, correlation_id, result, error_type, error_message, error_traceback,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', first_failed_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', last_failed_at) / 1e6
FROM {queue} FORCE INDEX (PRIMARY)
WHERE id < %(before)s AND id >= %(floor)s
  AND JSON_CONTAINS(%(statuses)s, JSON_QUOTE(status))
  AND (%(queue)s IS NULL OR queue_name = %(queue)s)
  AND (%(task)s IS NULL OR task = %(task)s)
  AND (%(created_after)s IS NULL OR created_at >= TIMESTAMP'1970-01-01 00:00:00' + INTERVAL %(created_after)s SECOND)
  AND (%(created_before)s IS NULL OR created_at < TIMESTAMP'1970-01-01 00:00:00' + INTERVAL %(created_before)s SECOND)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: find_processing
SELECT id, queue_name, task, status, priority, current_attempt, max_attempts, payload,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', created_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', available_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', locked_until) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', started_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', finished_at) / 1e6,
       worker, correlation_id, result, error_type, error_message, error_traceback,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', first_failed_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', last_failed_at) / 1e6
FROM (SELECT * FROM {queue} WHERE status = 'processing' LIMIT %(scan)s) AS t
WHERE id < %(before)s
  AND (%(queue)s IS NULL OR queue_name = %(queue)s)
  AND (%(task)s IS NULL OR task = %(task)s)
  AND (%(created_after)s IS NULL OR created_at >= TIMESTAMP'1970-01-01 00:00:00' + INTERVAL %(created_after)s SECOND)
  AND (%(created_before)s IS NULL OR created_at < TIMESTAMP'1970-01-01 00:00:00' + INTERVAL %(created_before)s SECOND)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: find_dead
SELECT id, queue_name, task, 'dead', priority, current_attempt, max_attempts, payload,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', created_at) / 1e6,
       NULL,
       NULL,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', started_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', finished_at) / 1e6,
       worker, correlation_id, NULL, error_type, error_message, error_traceback,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', first_failed_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', last_failed_at) / 1e6
FROM {dead}
WHERE id < %(before)s AND id >= %(floor)s
  AND (%(queue)s IS NULL OR queue_name = %(queue)s)
  AND (%(task)s IS NULL OR task = %(task)s)
  AND (%(created_after)s IS NULL OR created_at >= TIMESTAMP'1970-01-01 00:00:00' + INTERVAL %(created_after)s SECOND)
  AND (%(created_before)s IS NULL OR created_at < TIMESTAMP'1970-01-01 00:00:00' + INTERVAL %(created_before)s SECOND)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: get
SELECT t.id, t.queue_name, t.task, t.status, t.priority, t.current_attempt, t.max_attempts, t.payload,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.created_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.available_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.locked_until) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.started_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.finished_at) / 1e6,
       t.worker, t.correlation_id, t.result, t.error_type, t.error_message, t.error_traceback,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.first_failed_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.last_failed_at) / 1e6
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {queue} AS t ON t.id = i.id
UNION ALL
SELECT t.id, t.queue_name, t.task, 'dead', t.priority, t.current_attempt, t.max_attempts, t.payload,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.created_at) / 1e6,
       NULL,
       NULL,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.started_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.finished_at) / 1e6,
       t.worker, t.correlation_id, NULL, t.error_type, t.error_message, t.error_traceback,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.first_failed_at) / 1e6,
       TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', t.last_failed_at) / 1e6
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {dead} AS t ON t.id = i.id;

-- name: hold_dead
SELECT d.id
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {dead} AS d ON d.id = i.id
FOR UPDATE;

-- name: revive
INSERT INTO {queue} (id, queue_name, task, payload, priority, status, max_attempts, visibility_timeout,
                     created_at, available_at, correlation_id)
SELECT d.id, d.queue_name, d.task, d.payload, d.priority, 'pending', d.max_attempts, d.visibility_timeout,
       d.created_at, UTC_TIMESTAMP(6), d.correlation_id
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {dead} AS d ON d.id = i.id
ON DUPLICATE KEY UPDATE {queue}.id = {queue}.id;

-- name: forget
SELECT d.id
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {dead} AS d ON d.id = i.id
FOR UPDATE;
DELETE t
FROM JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {dead} AS t ON t.id = h.id;

-- name: cancel_keep
SELECT t.id
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {queue} AS t ON t.id = i.id
WHERE t.status IN ('pending', 'scheduled')
FOR UPDATE;
UPDATE JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id
SET t.status = 'cancelled', t.finished_at = UTC_TIMESTAMP(6);

-- name: cancel_remove
SELECT t.id
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {queue} AS t ON t.id = i.id
WHERE t.status IN ('pending', 'scheduled')
FOR UPDATE;
DELETE t
FROM JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id;

-- name: delete
SELECT t.id
FROM JSON_TABLE(%(ids)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS i
STRAIGHT_JOIN {queue} AS t ON t.id = i.id
WHERE t.status <> 'processing'
FOR UPDATE;
DELETE t
FROM JSON_TABLE(%(held)s, '$[*]' COLUMNS (
        id varchar(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS h
STRAIGHT_JOIN {queue} AS t ON t.id = h.id;
