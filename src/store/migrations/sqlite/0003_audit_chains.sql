-- One row for each request; its events are packed in `body`. The rows of a chain are numbered without a gap, and each
-- hangs from the one before by its `link`. What was recorded before there were chains keeps its table.
ALTER TABLE audit_log RENAME TO audit_log_before_chains;
DROP INDEX audit_log_at;
DROP INDEX audit_log_request;
DROP INDEX audit_log_identity;

CREATE TABLE audit_log (
    chain         INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    at            INTEGER NOT NULL,
    tenant        TEXT   ,
    identity_id   TEXT,
    identity_type TEXT,
    action        TEXT NOT NULL,
    source_ip     TEXT,
    request_id    TEXT NOT NULL,
    events        INTEGER NOT NULL,
    body          BLOB NOT NULL,
    link          BLOB NOT NULL,
    PRIMARY KEY (chain, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX audit_log_at ON audit_log (at, chain, number);
CREATE INDEX audit_log_request ON audit_log (request_id);
CREATE INDEX audit_log_identity ON audit_log (tenant, identity_id, at, chain, number);

-- The last checkpoint of each chain, for the other chains to vouch for.
CREATE TABLE audit_chains (
    chain  INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    link   BLOB NOT NULL
) STRICT;

-- What was removed by retention: signed words that a chain began earlier than its first row.
CREATE TABLE audit_tombstones (
    chain  INTEGER NOT NULL,
    number INTEGER NOT NULL,
    note   TEXT NOT NULL,
    PRIMARY KEY (chain, number)
) STRICT, WITHOUT ROWID;
