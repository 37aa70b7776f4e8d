#!/usr/bin/env bash
# Runs the three clients against a server with the demonstration's secrets and policies, and checks what they print.
# Needs bash, curl, jq, python3 with venv, node 20 or newer; fetches httpx and TypeScript. Leaves nothing behind.
#
#   PORTCULLIS_URL             the server
#   PORTCULLIS_TOKEN           may read salesforce and scaisend, but not stripe
#   PORTCULLIS_STARTUP_TOKEN   may read all five secrets of the start-up
set -euo pipefail

: "${PORTCULLIS_URL:?}" "${PORTCULLIS_TOKEN:?}" "${PORTCULLIS_STARTUP_TOKEN:?}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'httpx==0.28.*'

cp "$here"/{.npmrc,package.json,package-lock.json,batch.ts} "$work"
(cd "$work" && npm ci --silent --no-audit --no-fund && npm run --silent build)

shell() { bash "$here/batch.sh" "$@"; }
python() { "$work/venv/bin/python" "$here/batch.py" "$@"; }
typescript() { node "$work/dist/batch.js" "$@"; }

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# check CLIENT: what the first token reads and lists, what the second starts with, and that the first cannot start.
check() {
  local client=$1 out="$work/$1.out"
  "$client" read metadata startup >"$out" || fail "$client ended with $?"
  grep -Fx 'read integrations/salesforce/oauth version 3' "$out" || fail "$client: salesforce"
  grep -Fx 'read integrations/scaisend/api-key version 1' "$out" || fail "$client: scaisend"
  grep -Fx 'refused integrations/stripe/secret-key access_denied: No policy permits read on this path' "$out" ||
    fail "$client: stripe"
  grep -Fx 'metadata integrations/salesforce/oauth version 3' "$out" || fail "$client: metadata"
  [[ $(grep -c '^loaded ' "$out") == 5 ]] || fail "$client: start-up"
  diff "$work/shell.out" "$out" || fail "$client and shell differ"

  if PORTCULLIS_STARTUP_TOKEN=$PORTCULLIS_TOKEN "$client" startup >"$work/none" 2>"$work/err"; then
    fail "$client starts up without a secret it needs"
  fi
  [[ ! -s $work/none ]] || fail "$client: a start-up that fails loads nothing"
  grep -F 'HTTP 403: access_denied at integrations/stripe/secret-key' "$work/err" || fail "$client: $(cat "$work/err")"
}

for client in shell python typescript; do
  echo "== $client"
  check "$client"
done
echo "all three clients agree"
