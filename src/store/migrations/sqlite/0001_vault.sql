-- Times are microseconds since 1970-01-01 UTC.

CREATE TABLE secrets (
    tenant            TEXT    NOT NULL,
    path              TEXT    NOT NULL,
    latest            INTEGER NOT NULL,
    secret_type       TEXT    NOT NULL,
    metadata          TEXT    NOT NULL,
    created_at        INTEGER NOT NULL,
    created_by        TEXT    NOT NULL,
    updated_at        INTEGER NOT NULL,
    updated_by        TEXT    NOT NULL,
    expires_at        INTEGER,
    deleted_at        INTEGER,
    recoverable_until INTEGER,
    max_versions      INTEGER NOT NULL,
    PRIMARY KEY (tenant, path)
) STRICT, WITHOUT ROWID;

-- A destroyed version keeps its row; its key and value are NULL.
CREATE TABLE versions (
    tenant         TEXT    NOT NULL,
    path           TEXT    NOT NULL,
    version        INTEGER NOT NULL,
    secret_type    TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    created_by     TEXT    NOT NULL,
    expires_at     INTEGER,
    destroyed_at   INTEGER,
    key_generation INTEGER,
    wrapped_key    BLOB,
    ciphertext     BLOB,
    PRIMARY KEY (tenant, path, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE tenant_keys (
    tenant     TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    wrapped    BLOB    NOT NULL,
    PRIMARY KEY (tenant, generation)
) STRICT, WITHOUT ROWID;

-- One row: which root key this vault was made with.
CREATE TABLE root_key (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    fingerprint BLOB NOT NULL
) STRICT;

-- One row for each request; its events are packed in `body`.
CREATE TABLE audit_log (
    sequence      INTEGER PRIMARY KEY AUTOINCREMENT,
    at            INTEGER NOT NULL,
    tenant        TEXT,
    identity_id   TEXT,
    identity_type TEXT,
    action        TEXT    NOT NULL,
    source_ip     TEXT,
    request_id    TEXT    NOT NULL,
    body          BLOB    NOT NULL
) STRICT;

CREATE INDEX audit_log_at ON audit_log (at);
CREATE INDEX audit_log_request ON audit_log (request_id);
CREATE INDEX audit_log_identity ON audit_log (tenant, identity_id, sequence);
