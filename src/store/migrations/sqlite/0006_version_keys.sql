-- Which values are under a key is asked while nobody can write: it must not take reading all of them. A new value goes to
-- the end of its tenant's part.
CREATE INDEX versions_key ON versions (tenant, key_generation) WHERE key_generation IS NOT NULL;
