-- The tables of the MySQL driver. {queue} and {dead} are the quoted table names and {index} the stem of index names.
-- utf8mb4_bin, for names that differ in case are different; LONGBLOB, for a BLOB ends at 65,535 bytes.

-- name: schema
CREATE TABLE IF NOT EXISTS {queue} (
    id varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    queue_name varchar(128) NOT NULL,
    task varchar(255) NOT NULL,
    payload longblob NOT NULL,
    priority smallint NOT NULL,
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
    KEY {index}_pending (queue_name, suspect, status, priority DESC, id),
    KEY {index}_scheduled (queue_name, status, available_at),
    KEY {index}_processing (queue_name, status, locked_until)
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
