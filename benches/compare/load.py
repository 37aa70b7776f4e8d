"""The load generators: wrk, which asks again as soon as it is answered, and h2load, which keeps to a rate."""

import itertools
import json
import pathlib
import shutil
import subprocess

import workload
from wire import WrongAnswer, exchange

# The share of requests that may be refused or break off before a measurement counts for nothing. What is lost is told.
TOLERATED = 0.001
SCRIPT = pathlib.Path(__file__).parent / "requests.lua"


def need(program, package):
    if not shutil.which(program):
        raise SystemExit(f"{program} is needed (Debian: {package})")


class Requests:
    """The requests of one kind to one server: each is asked once and checked, then they are a file for wrk."""

    def __init__(self, server, kind, count, directory, different=None):
        self.server, self.kind, self.secrets = server, kind, workload.secrets(kind, count)
        self.file = directory / f"{server.name}-{kind}".replace(" ", "-")
        raws = list(itertools.islice(workload.requests(server.dialect, kind, count, server.token), different))
        for raw in itertools.islice(raws, 64 if kind.startswith("batch") else 8):
            workload.check(server.dialect, kind, count, *exchange(server.port, raw))
        self.file.write_bytes(b"".join(b"%d\n%s" % (len(raw), raw) for raw in raws))
        self.raws = raws

    def drive(self, connections, seconds):
        """Asks for so long. Returns what wrk found, and the seconds of CPU that the server used."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", SCRIPT,
                   f"http://127.0.0.1:{self.server.port}/", "--", self.file]
        before = self.server.cpu()
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        used = self.server.cpu() - before
        last = ran.stdout.strip().rpartition("\n")[2]
        if ran.returncode != 0 or not last.startswith("{"):
            raise WrongAnswer(f"wrk: {ran.stdout} {ran.stderr}")
        return self.figures(json.loads(last), used)

    def figures(self, found, used):
        lost = found["refused"] + found["broken"]
        if lost > found["requests"] * TOLERATED:
            raise WrongAnswer(f"{self.server.name}, {self.kind}: {found}")
        secrets = (found["requests"] - lost) * self.secrets
        return {
            "requests/s": found["requests"] / found["seconds"],
            "secrets/s": secrets / found["seconds"],
            "p50 ms": found["p50_ms"],
            "p99 ms": found["p99_ms"],
            "CPU s/1,000": used / secrets * 1000,
            "lost": lost,
        }


def flood(asked, rate, clients, seconds, directory):
    """Asks the first of these requests at a rate, whether or not the server keeps up. A client that still waits for its
    answer skips its turn: as many as there are clients can wait at once."""
    server, head, body = asked.server, *asked.raws[0].split(b"\r\n\r\n")
    target = head.split()[1].decode()
    (directory / "body").write_bytes(body)
    log = directory / "flood.tsv"
    log.unlink(missing_ok=True)
    command = ["h2load", "--h1", "-t1", f"-c{clients}", f"--rps={rate / clients:.3f}", f"-D{seconds}", "-d",
               directory / "body", f"--log-file={log}", "-H", f"Authorization: Bearer {server.token}",
               "-H", "Content-Type: application/json", f"http://127.0.0.1:{server.port}{target}"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if ran.returncode != 0:
        raise WrongAnswer(f"h2load: {ran.stdout} {ran.stderr}")
    lines = [list(map(int, line.split("\t")[:3])) for line in log.read_text().splitlines()]
    admitted = sorted(took for _, status, took in lines if status == 200)
    refused = sorted(took for _, status, took in lines if status != 200)
    count = {status: sum(1 for line in lines if line[1] == status) for status in {line[1] for line in lines}}
    return {
        "offered/s": rate,
        "sent/s": len(lines) / seconds,
        "good/s": len(admitted) / seconds,
        "p50 ms": percentile(admitted, 50),
        "p99 ms": percentile(admitted, 99),
        "refused p99 ms": percentile(refused, 99),
        "statuses": {status: 100 * of / len(lines) for status, of in sorted(count.items())},
    }


def percentile(microseconds, percent):
    return microseconds[min(len(microseconds) * percent // 100, len(microseconds) - 1)] / 1000 if microseconds else None
