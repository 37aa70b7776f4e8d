-- Keys of the vault's own that outlive a root key, each wrapped under it.
CREATE TABLE vault_keys (
    name    TEXT PRIMARY KEY,
    wrapped BLOB NOT NULL
) STRICT, WITHOUT ROWID;
