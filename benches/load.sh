#!/usr/bin/env bash
# Requests a second and latency of a release server with the load generator beside it: SQLite, audit durable, sample
# rules, rate limits off, 100 secrets of about 200 bytes.
#
#   cargo build --release && benches/load.sh [SECONDS]
#
# Needs wrk, curl, python3. Prints one line for each kind of request and number of connections.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-10}
work=$(mktemp -d)
categories=(read write delete list batch_read batch_metadata audit_query auth)
for category in "${categories[@]}"; do
  export "PORTCULLIS__RATE_LIMITS__${category^^}=0"
done
export PORTCULLIS__LOG__FILTER=warn,portcullis::cli=info

now() { date +%s%N; }

: >"$work/log"
started=$(now)
target/release/portcullis serve --dev --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/page" 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
until grep -q listening "$work/log"; do
  kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
  sleep 0.005
done
eval "$(grep '^export ' "$work/page")"
url=$(grep -o 'http://[0-9.:]*' "$work/page" | head -n 1)
curl -sSf -o /dev/null "$url/v1/secrets/infra/db/primary/credentials" -H "Authorization: Bearer $STARTUP_TOKEN"
echo "empty directory to first answer: $((($(now) - started) / 1000000)) ms"
resident() { awk '/^VmRSS/ {print int($2 / 1024) " MiB"}' "/proc/$server/status"; }
echo "resident, idle: $(resident)"

python3 - "$work" <<'PYTHON'
import json, os, sys
work = sys.argv[1]
for count in (1, 100):
    json.dump({"paths": [f"infra/load/s{i}" for i in range(count)]}, open(f"{work}/batch-{count}.json", "w"))
    with open(f"{work}/batch-{count}.lua", "w") as script:
        script.write(f'''wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("STARTUP_TOKEN")
local body = io.open("{work}/batch-{count}.json")
wrk.body = body:read("*a")
body:close()
''')
with open(f"{work}/get.lua", "w") as script:
    script.write('wrk.headers["Authorization"] = "Bearer " .. os.getenv("STARTUP_TOKEN")\n')
for i in range(100):
    data = {"username": f"app-{i}", "password": os.urandom(96).hex()[:128], "host": f"db-{i}.internal", "port": 5432}
    json.dump({"data": data}, open(f"{work}/put-{i}.json", "w"))
PYTHON
for i in $(seq 0 99); do
  curl -sSf -o /dev/null -X PUT "$url/v1/secrets/infra/load/s$i" -H "Authorization: Bearer $ADMIN_TOKEN" \
    -H "Content-Type: application/json" -d @"$work/put-$i.json"
done

measure() {
  local name=$1 script=$2 target=$3 connections=$4
  wrk -t1 -c"$connections" -d"${seconds}s" --latency -s "$work/$script" "$url$target" >"$work/out"
  if grep -q Non-2xx "$work/out"; then
    cat "$work/out" >&2
    exit 1
  fi
  awk -v name="$name" -v connections="$connections" '
    $1 == "50%" {p50 = $2} $1 == "99%" {p99 = $2} /^Requests\/sec/ {rate = $2}
    END {printf "%-14s %3d connections %9.0f requests/s   p50 %8s   p99 %8s\n", name, connections, rate, p50, p99}
  ' "$work/out"
}

for connections in 1 16; do
  measure "GET" get.lua /v1/secrets/infra/load/s0 "$connections"
  measure "batch of 1" batch-1.lua /v1/secrets/batch "$connections"
  measure "batch of 100" batch-100.lua /v1/secrets/batch "$connections"
done
echo "resident, after load: $(resident)"
