-- The same rows in a table with row numbers. Without them a row of over 1 KB has pages of its own, and each look for a
-- place in the log reads such rows whole.
ALTER TABLE audit_log RENAME TO audit_log_without_rowid;
DROP INDEX audit_log_at;
DROP INDEX audit_log_request;
DROP INDEX audit_log_identity;

CREATE TABLE audit_log (
    chain         INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    at            INTEGER NOT NULL,
    tenant        TEXT,
    identity_id   TEXT,
    identity_type TEXT,
    action        TEXT    NOT NULL,
    source_ip     TEXT,
    request_id    TEXT    NOT NULL,
    events        INTEGER NOT NULL,
    body          BLOB    NOT NULL,
    link          BLOB    NOT NULL,
    PRIMARY KEY (chain, number)
) STRICT;

INSERT INTO audit_log
SELECT chain, number, at, tenant, identity_id, identity_type, action, source_ip, request_id, events, body, link
FROM audit_log_without_rowid ORDER BY chain, number;

-- Dropped with its rows, it would be copied to a temporary file first.
DELETE FROM audit_log_without_rowid;
DROP TABLE audit_log_without_rowid;

CREATE INDEX audit_log_at ON audit_log (at, chain, number);
CREATE INDEX audit_log_request ON audit_log (request_id);
CREATE INDEX audit_log_identity ON audit_log (tenant, identity_id, at, chain, number);

-- With one server there is one chain.
DROP TABLE audit_chains;
