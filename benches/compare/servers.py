"""The servers that are measured: how each is filled, started, watched and stopped.

Each keeps all it has in one directory. A filled one is kept as a template; each turn starts a fresh copy of it.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import time

import policies
import workload
from wire import WrongAnswer, exchange, request, send_all, wait_until_answered

TICKS = os.sysconf("SC_CLK_TCK")
CATEGORIES = ["read", "write", "delete", "list", "batch_read", "batch_metadata", "audit_query", "auth"]
SCOPES = ["secrets:read", "secrets:write", "secrets:list"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def descendants(pid):
    """The process and all below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += map(int, pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def cpu_seconds(pid):
    """What a process and its children have used, those that ended included."""
    ticks = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            # utime, stime; and of the first process cutime, cstime.
            ticks += sum(map(int, fields[11:15] if each == pid else fields[11:13]))
    return ticks / TICKS


def memory_mib(pid, what):
    """`VmRSS` or `VmHWM` of a process."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what + ":")) / 1024


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)


class Server:
    """One server: a name, a directory, and once it is started a port, a process and a token."""

    dialect = workload.Portcullis

    def __init__(self, name, program):
        self.name, self.program = name, program
        self.processes, self.port, self.token = [], None, None

    def spawn(self, command, home, **more):
        """Starts a process whose words go to the log in the directory."""
        with open(home / "log", "ab") as log:
            process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log,
                                       stdin=subprocess.DEVNULL, start_new_session=True, **more)
        self.processes.append(process)
        return process

    def ask(self, method, target, body=None, token=None, good=(200, 201, 204)):
        status, answer = exchange(self.port, request(method, target, token or self.token, body))
        if status not in good:
            raise WrongAnswer(f"{self.name}: {method} {target}: {status} {answer[:300]!r}")
        return answer

    def store_secrets(self, count):
        """Stores them as any client would."""
        def puts():
            for n in range(count):
                yield self.dialect.put(workload.path(n), workload.value(n), self.token)
        send_all(self.port, puts())

    def cpu(self):
        return sum(cpu_seconds(process.pid) for process in self.processes)

    def memory(self, what):
        """Of the server itself, which is started last: how much its database may take is set, not found."""
        return memory_mib(self.processes[-1].pid, what)

    def stop(self):
        """Ends what it started, the newest first."""
        while self.processes:
            process = self.processes.pop()
            process.send_signal(signal.SIGINT if getattr(process, "is_postgres", False) else signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Portcullis(Server):
    """Ours, on SQLite: audit durable, no TLS, no rate limits."""

    def __init__(self, name, program, rules=10):
        super().__init__(name, program)
        self.rules = rules

    def start(self, home, fresh=False):
        """Returns when it has answered a read; how long that took is in `start_seconds`."""
        data = home / "data"
        if fresh:
            data.mkdir(parents=True, mode=0o700)
            (data / "root.key").write_bytes(os.urandom(32))
            (data / "root.key").chmod(0o600)
        policies.write(home / "policies", self.rules)
        self.port = free_port()
        settings = [f'listen = "127.0.0.1:{self.port}"', f'policies = "{home}/policies"', "[log]", 'filter = "warn"',
                    "[store]", f'data_dir = "{data}"', *self.store_settings(home, fresh), "[rate_limits]"]
        settings += [f"{category} = 0" for category in CATEGORIES]
        config = home / "portcullis.toml"
        config.write_text("\n".join(settings) + "\n")
        self.token = self.issue(config)
        first = self.dialect.get(workload.path(0), self.token)
        began = time.monotonic()
        process = self.spawn([self.program, "serve", "--config", config], home)
        answered = wait_until_answered(self.port, first, process, statuses=(404,) if fresh else (200,))
        self.start_seconds = answered - began

    def store_settings(self, home, fresh):
        return []

    def issue(self, config):
        """A token with what the load needs, of the groups that a tenth of the rules is about each."""
        command = [self.program, "token", "issue", "--config", config, "--subject", "sa:bench", "--ttl", "7d"]
        command += [word for scope in SCOPES for word in ("--scope", scope)]
        command += ["--group", "g3", "--group", "g7"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def fill(self, home, count):
        self.start(home, fresh=True)
        self.store_secrets(count)
        self.filled()
        self.stop()

    def filled(self):
        """What a store wants to have done after so many writes."""


class PortcullisOnPostgres(Portcullis):
    """Ours, on a PostgreSQL of its own with its default settings for durability."""

    def store_settings(self, home, fresh):
        cluster, port = home / "postgres", free_port()
        # PostgreSQL refuses to run as root.
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        programs = postgres_programs()
        if fresh:
            cluster.mkdir(parents=True, mode=0o700)
            if user:
                shutil.chown(cluster, "postgres", "postgres")
            init = [programs / "initdb", "-D", cluster, "-A", "trust", "-U", "portcullis", "-E", "UTF8", "--no-locale"]
            subprocess.run([*user, *map(str, init)], check=True, capture_output=True, cwd="/")
        options = ["-p", port, "-k", cluster, "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=256MB"]
        process = self.spawn([*user, programs / "postgres", "-D", cluster, *options], home, cwd="/")
        process.is_postgres = True
        self.wait_for_postgres(programs, port, process)
        self.client = [programs / "psql", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "portcullis", "postgres", "-c"]
        return [f'database_url = "postgres://portcullis@127.0.0.1:{port}/postgres"']

    def filled(self):
        """Autovacuum would do it within a minute."""
        subprocess.run([*self.client, "VACUUM ANALYZE"], check=True)

    @staticmethod
    def wait_for_postgres(programs, port, process):
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready).returncode != 0:
            if process.poll() is not None:
                raise WrongAnswer("PostgreSQL does not start")


def postgres_programs():
    found = [*sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True), shutil.which("postgres")]
    if not found[0]:
        raise SystemExit("no PostgreSQL is installed: leave out `--store`")
    return pathlib.Path(found[0]).parent


class Floor(Server):
    """Bare handlers over the same rows, with the values in the clear."""

    dialect = workload.Floor

    def __init__(self, name, program, kind, source):
        super().__init__(name, program)
        self.kind, self.source = kind, source

    def start(self, home):
        self.port = free_port()
        process = self.spawn([self.program, self.kind, home / "floor.db", f"127.0.0.1:{self.port}"], home)
        wait_until_answered(self.port, self.dialect.get(workload.path(0), None), process)

    def fill(self, home, count):
        """The same rows, of the same sizes: for each value its JSON, filled up with blanks to the sealed value's length."""
        home.mkdir(parents=True)
        shutil.copy(self.source / "data/portcullis.db", home / "floor.db")
        with contextlib.closing(sqlite3.connect(home / "floor.db")) as database, database:
            for n in range(count):
                database.execute("UPDATE versions SET ciphertext = CAST(? || printf('%*s', length(ciphertext) - ?, '') "
                                 "AS BLOB) WHERE tenant = 'default' AND path = ?", in_the_clear(n))
            database.execute("DELETE FROM audit_log")


def in_the_clear(n):
    text = workload.compact(workload.value(n)).decode()
    return text, len(text), workload.path(n)
