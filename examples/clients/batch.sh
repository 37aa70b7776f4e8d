#!/usr/bin/env bash
# Portcullis from a shell: needs curl and jq. Prints paths and versions, never a value.
#
#   batch.sh [read] [metadata] [startup]     all three if none is named
set -euo pipefail

url=${PORTCULLIS_URL:?"the server's address, such as http://127.0.0.1:8400"}

# post TOKEN PATH BODY: prints the answer, or says on stderr why there is none and fails.
# The token reaches curl through a file descriptor: a command line can be read by every user of the machine.
post() {
  local reply status
  reply=$(curl --silent --show-error --max-time 10 --write-out '\n%{http_code}' \
    --config <(printf 'header = "Authorization: Bearer %s"\n' "$1") \
    --header 'Content-Type: application/json' --data "$3" "${url%/}$2") || return
  status=${reply##*$'\n'}
  reply=${reply%$'\n'*}
  if [[ $status != 200 ]]; then
    printf 'HTTP %s: ' "$status" >&2
    jq --raw-output '.error | "\(.code) at \(.details.path // "-"): \(.message) (request \(.request_id))"' \
      <<<"$reply" >&2 || true
    return 1
  fi
  printf '%s' "$reply"
}

# expect REPLY FILTER [jq options]: fails unless the filter holds.
expect() {
  local reply=$1 filter=$2
  shift 2
  jq --exit-status "$@" "$filter" <<<"$reply" >/dev/null || { echo "unexpected answer: not $filter" >&2; return 1; }
}

# A few credentials at once. Whatever is denied or missing is in `errors`, next to what was released.
read_some() {
  local paths reply
  paths='["integrations/salesforce/oauth", "integrations/scaisend/api-key", "integrations/stripe/secret-key"]'
  reply=$(post "${PORTCULLIS_TOKEN:?}" /v1/secrets/batch \
    "{\"paths\": $paths, \"options\": {\"include_metadata\": false, \"fail_fast\": false}}")
  expect "$reply" '((.secrets + .errors) | keys) == ($paths | sort)' --argjson paths "$paths"
  expect "$reply" '.retrieved == (.secrets | length) and .failed == (.errors | length)'
  jq --raw-output --argjson paths "$paths" '. as $reply | $paths[] | . as $path
    | if $reply.secrets[$path] then "read \($path) version \($reply.secrets[$path].version)"
      else $reply.errors[$path] | "refused \($path) \(.code): \(.message)" end' <<<"$reply"
}

# What there is below two prefixes, without values: needs no right to read.
list_some() {
  local reply
  reply=$(post "${PORTCULLIS_TOKEN:?}" /v1/secrets/batch/metadata \
    '{"paths": ["integrations/salesforce/*", "integrations/stripe/*"], "expand_wildcards": true}')
  expect "$reply" '.has_more != true'
  expect "$reply" '[.metadata[] | has("data")] | any | not'
  jq --raw-output '.metadata | keys[] as $path | "metadata \($path) version \(.[$path].version)"' <<<"$reply"
}

# All that a service needs, or no start: with fail_fast the first denied or missing path is the whole answer, a 4xx.
start_up() {
  local paths reply
  paths='["integrations/salesforce/oauth", "integrations/scaisend/api-key", "integrations/stripe/secret-key",
    "infra/db/primary/credentials", "infra/redis/primary/credentials"]'
  reply=$(post "${PORTCULLIS_STARTUP_TOKEN:?}" /v1/secrets/batch \
    "{\"paths\": $paths, \"options\": {\"fail_fast\": true}}")
  expect "$reply" '(.secrets | keys) == ($paths | sort)' --argjson paths "$paths"
  jq --raw-output --argjson paths "$paths" '.secrets as $secrets
    | $paths[] | "loaded \(.) version \($secrets[.].version)"' <<<"$reply"
}

for part in "${@:-all}"; do
  case $part in
    read) read_some ;;
    metadata) list_some ;;
    startup) start_up ;;
    all) read_some; list_some; start_up ;;
    *) echo "unknown part: $part (read, metadata, startup)" >&2; exit 64 ;;
  esac
done
