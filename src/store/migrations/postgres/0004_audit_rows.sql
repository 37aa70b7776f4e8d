-- From here on, rows are written in a form that older servers do not read: they must not start.
COMMENT ON COLUMN audit_log.body IS 'the events of one request, packed; versions 1 and 2';
