"""The goals that the comparison's figures are held against."""

import statistics

from tables import markdown, ratio

# What is asked at how many connections; beside whom; how many times as much it has to be; of what.
GOALS = [
    ("get", 16, "openbao", 15, "requests/s"),
    ("get", 16, "store floor", 1, "requests/s"),
    ("batch-100", 16, "openbao", 200, "secrets/s"),
    ("batch-100", 16, "store floor", 1, "secrets/s"),
    ("batch-100", 16, "memory floor", 0.5, "secrets/s"),
    ("put", 16, "openbao", 5, "requests/s"),
    ("metadata", 16, "openbao", 50, "requests/s"),
]
MIB = 1.048576


def table(results, ours):
    """Each goal that this run measured, and whether it is met."""
    rows = [*beside(results, ours), *tail(results, ours), *single(results, ours), *memory(results, ours)]
    return markdown(["goal", "wanted", "median (least–most)", "met"], rows)


def row(what, wanted, values, good):
    return [what, wanted, ratio(values), "yes" if good(statistics.median(values)) else "**no**"]


def beside(results, ours):
    for kind, connections, other, least, figure in GOALS:
        if found := results.ratios(kind, connections, ours, other, figure):
            what = f"{kind} at {connections}: {figure} ÷ {other}'s"
            yield row(what, f"≥ {least}", found, lambda value, least=least: value >= least)


def tail(results, ours):
    if turns := results.turns.get(("batch-100", 1), {}).get(ours):
        spread = [turn["p99 ms"] / turn["p50 ms"] for turn in turns]
        yield row("batch-100 at 1: p99 ÷ p50", "< 3", spread, lambda value: value < 3)


def single(results, ours):
    for connections in sorted({connections for _, connections in results.turns}):
        get, batch = (results.turns.get((kind, connections), {}).get(ours) for kind in ("get", "batch-1"))
        if get and batch:
            costs = [one["requests/s"] / other["requests/s"] for one, other in zip(get, batch)]
            what = f"get ÷ batch-1 at {connections}: requests/s"
            yield row(what, "0.95 to 1.05", costs, lambda value: abs(value - 1) <= 0.05)


def memory(results, ours):
    for column, most, name in ((0, 60, "idle"), (1, 200, "under load")):
        if found := [turn[column] * MIB for turn in results.memory.get(ours, [])]:
            yield row(f"memory {name}, MB", f"≤ {most}", found, lambda value, most=most: value <= most)
