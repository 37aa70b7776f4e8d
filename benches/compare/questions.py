"""Single questions beside the comparison: rules, starts, size, overload."""

import statistics
import subprocess
import time

import load
from servers import Portcullis, copy
from tables import Results, markdown, number, ratio


def against(bench, first, second, goal, kinds=("batch-100",), connections=(1, 16)):
    """Two servers in turns: how many times as long a request takes on the second."""
    results = Results()
    for turn in range(bench.options.turns):
        bench.measure([first, second], list(kinds), list(connections), results, turn, bench.options.secrets)
    return results, judged(results, first.name, second.name, goal)


def judged(results, first, second, goal):
    rows = []
    for kind, connections in results.turns:
        found = results.ratios(kind, connections, first, second)
        met = "yes" if statistics.median(found) <= goal else "**no**"
        means = [number(results.median(kind, connections, name, "requests/s")) for name in (first, second)]
        rows.append([kind, connections, *means, ratio(found), f"≤ {goal}", met])
    head = ["asked", "connections", f"{first}: requests/s", f"{second}: requests/s", "takes × as long", "goal", "met"]
    return markdown(head, rows)


def rules(bench):
    """10 rules against 10,000."""
    servers = [Portcullis(f"{count:,} rules", bench.program, rules=count) for count in (10, 10_000)]
    results, table = against(bench, *servers, 1.3)
    print(table, end="\n\n")
    return results.as_json()


def start(bench):
    """Start to first answer with everything stored and the compiled policies kept; memory idle and after."""
    took, idle = [], []
    server = Portcullis("portcullis", bench.program)
    template = bench.template(server, bench.options.secrets)
    home = bench.scratch / "start"
    copy(template, home)
    try:
        for _ in range(bench.options.turns):
            server.start(home)
            took.append(server.start_seconds * 1000)
            time.sleep(1)
            idle.append(server.memory("VmRSS"))
            server.stop()
    finally:
        server.stop()
    rows = [[f"start to first answer, {bench.options.secrets:,} secrets: ms", "≤ 150", ratio(took)],
            ["memory idle: MiB", "≤ 57", ratio(idle)]]
    print(markdown(["start", "goal", "median (least–most)"], rows), end="\n\n")
    return {"start ms": took, "idle MiB": idle}


def scale(bench):
    """A batch of 100 with many secrets stored against 10,000."""
    few, many = 10_000, bench.options.many
    servers = [Portcullis(f"{few:,} secrets", bench.program), Portcullis(f"{many:,} secrets", bench.program)]
    homes = [bench.scratch / "few", bench.scratch / "many"]
    results = Results()
    try:
        for server, home in zip(servers, homes):
            copy(bench.template(server, few), home)
        fill = bench.build("--bench", "fill")
        began = time.monotonic()
        subprocess.run([fill, homes[1] / "data", str(few), str(many)], check=True)
        bench.say(f"filled {many:,} secrets in {time.monotonic() - began:.0f} s")
        for server, home in zip(servers, homes):
            server.start(home)
        asked = [load.Requests(server, "batch-100", count, bench.scratch) for server, count in zip(servers, (few, many))]
        for each in asked:
            each.drive(16, 2)
        for turn in range(bench.options.turns):
            for connections in (1, 16):
                for each in asked if turn % 2 else reversed(asked):
                    results.add("batch-100", connections, each.server.name, each.drive(connections, bench.options.seconds))
    finally:
        for server in servers:
            server.stop()
    print(judged(results, servers[0].name, servers[1].name, 1.5), end="\n\n")
    return results.as_json()


def overload(bench):
    """Batches of 100 at ten times what the server can do: goodput, latency of what is admitted, the rest, memory."""
    load.need("h2load", "nghttp2-client")
    server, seconds, turns = Portcullis("portcullis", bench.program), bench.options.seconds, []
    for turn in range(bench.options.turns):
        with bench.started([server], bench.options.secrets):
            # h2load sends one body, so saturation is measured with that one as well.
            asked = load.Requests(server, "batch-100", bench.options.secrets, bench.scratch, different=1)
            asked.drive(16, 1)
            peak = max(asked.drive(connections, seconds)["requests/s"] for connections in (16, 64))
            flood = load.flood(asked, 10 * peak, bench.options.clients, seconds, bench.scratch)
            flood |= {"peak": peak, "MiB at most": server.memory("VmHWM"), "goodput": flood["good/s"] / peak}
            turns.append(flood)
            bench.say(f"turn {turn + 1}: {flood}")
    print(overload_table(turns), end="\n\n")
    return turns


def overload_table(turns):
    def column(name):
        return [turn[name] for turn in turns]

    statuses = {}
    for turn in turns:
        for status, share in turn["statuses"].items():
            statuses.setdefault(status, []).append(share)
    told = "; ".join(f"{status}: {ratio(shares)} %" for status, shares in statuses.items())
    rows = [
        ["saturation, batches/s", "", ratio(column("peak"))],
        ["offered, batches/s", "10 ×", ratio(column("offered/s"))],
        ["sent, batches/s", "", ratio(column("sent/s"))],
        ["goodput ÷ saturation", "≥ 0.85", ratio(column("goodput"))],
        ["p50 of the admitted, ms", "", ratio(column("p50 ms"))],
        ["p99 of the admitted, ms", "< 250", ratio(column("p99 ms"))],
        ["p99 of the refused, ms", "", ratio([p for p in column("refused p99 ms") if p is not None])],
        ["memory at most, MiB", "< 1,024", ratio(column("MiB at most"))],
        ["statuses", "200; 429 or 503", told],
    ]
    return markdown(["overload", "goal", "median (least–most)"], rows)


ALL = {"rules": rules, "start": start, "scale": scale, "overload": overload}
