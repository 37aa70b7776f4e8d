-- The same rows in a table with row numbers. Without them a new value goes between those of other secrets, into a page that
-- is full, and moves what is on the pages beside it; so it goes to the end, and the index alone has to make room.
ALTER TABLE versions RENAME TO versions_without_rowid;

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
) STRICT;

INSERT INTO versions
SELECT tenant, path, version, secret_type, created_at, created_by, expires_at, destroyed_at, key_generation, wrapped_key,
       ciphertext
FROM versions_without_rowid ORDER BY tenant, path, version;

-- Dropped with its rows, it would be copied to a temporary file first, where nothing ever overwrites it.
DELETE FROM versions_without_rowid;
DROP TABLE versions_without_rowid;
