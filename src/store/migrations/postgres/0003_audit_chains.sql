-- One row for each request; its events are packed in `body`. The rows of a chain are numbered without a gap, and each
-- hangs from the one before by its `link`. What was recorded before there were chains keeps its table.
ALTER TABLE audit_log RENAME TO audit_log_before_chains;
ALTER INDEX audit_log_pkey RENAME TO audit_log_before_chains_pkey;
DROP INDEX audit_log_at;
DROP INDEX audit_log_request;
DROP INDEX audit_log_identity;

CREATE TABLE audit_log (
    chain         BIGINT NOT NULL,
    number        BIGINT NOT NULL,
    at            BIGINT NOT NULL,
    tenant        TEXT COLLATE "C",
    identity_id   TEXT,
    identity_type TEXT,
    action        TEXT NOT NULL,
    source_ip     TEXT,
    request_id    TEXT NOT NULL,
    events        BIGINT NOT NULL,
    body          BYTEA NOT NULL,
    link          BYTEA NOT NULL,
    PRIMARY KEY (chain, number)
);

CREATE INDEX audit_log_at ON audit_log (at, chain, number);
CREATE INDEX audit_log_request ON audit_log (request_id);
CREATE INDEX audit_log_identity ON audit_log (tenant, identity_id, at, chain, number);

-- The last checkpoint of each chain, for the other chains to vouch for.
CREATE TABLE audit_chains (
    chain  BIGINT PRIMARY KEY,
    number BIGINT NOT NULL,
    link   BYTEA NOT NULL
);

-- What was removed by retention: signed words that a chain began earlier than its first row.
CREATE TABLE audit_tombstones (
    chain  BIGINT NOT NULL,
    number BIGINT NOT NULL,
    note   TEXT NOT NULL,
    PRIMARY KEY (chain, number)
);
