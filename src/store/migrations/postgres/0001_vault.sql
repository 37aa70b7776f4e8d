-- Times are microseconds since 1970-01-01 UTC.

CREATE TABLE secrets (
    tenant            TEXT COLLATE "C" NOT NULL,
    path              TEXT COLLATE "C" NOT NULL,
    latest            BIGINT NOT NULL,
    secret_type       TEXT    NOT NULL,
    metadata          TEXT    NOT NULL,
    created_at        BIGINT NOT NULL,
    created_by        TEXT    NOT NULL,
    updated_at        BIGINT NOT NULL,
    updated_by        TEXT    NOT NULL,
    expires_at        BIGINT,
    deleted_at        BIGINT,
    recoverable_until BIGINT,
    max_versions      BIGINT NOT NULL,
    PRIMARY KEY (tenant, path)
);

-- A destroyed version keeps its row; its key and value are NULL.
CREATE TABLE versions (
    tenant         TEXT COLLATE "C" NOT NULL,
    path           TEXT COLLATE "C" NOT NULL,
    version        BIGINT NOT NULL,
    secret_type    TEXT    NOT NULL,
    created_at     BIGINT NOT NULL,
    created_by     TEXT    NOT NULL,
    expires_at     BIGINT,
    destroyed_at   BIGINT,
    key_generation BIGINT,
    wrapped_key    BYTEA,
    ciphertext     BYTEA,
    PRIMARY KEY (tenant, path, version)
);

CREATE TABLE tenant_keys (
    tenant     TEXT COLLATE "C" NOT NULL,
    generation BIGINT NOT NULL,
    wrapped    BYTEA    NOT NULL,
    PRIMARY KEY (tenant, generation)
);

-- One row: which root key this vault was made with.
CREATE TABLE root_key (
    id          BIGINT PRIMARY KEY CHECK (id = 1),
    fingerprint BYTEA NOT NULL
);

-- One row for each request; its events are packed in `body`.
CREATE TABLE audit_log (
    sequence      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            BIGINT NOT NULL,
    tenant        TEXT COLLATE "C",
    identity_id   TEXT,
    identity_type TEXT,
    action        TEXT    NOT NULL,
    source_ip     TEXT,
    request_id    TEXT    NOT NULL,
    body          BYTEA    NOT NULL
);

CREATE INDEX audit_log_at ON audit_log (at);
CREATE INDEX audit_log_request ON audit_log (request_id);
CREATE INDEX audit_log_identity ON audit_log (tenant, identity_id, sequence);
