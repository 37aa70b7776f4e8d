"""Medians, ratios with their spread, and Markdown."""

import statistics

FIGURES = ["requests/s", "secrets/s", "p50 ms", "p99 ms", "CPU s/1,000"]


def number(value):
    """Three digits that count, or whole thousands."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def ratio(values):
    """The median of the turns, and from the least to the most."""
    if not values:
        return "–"
    return f"{number(statistics.median(values))} ({number(min(values))}–{number(max(values))})"


def markdown(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["--:"] * (len(head) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


class Results:
    """What was measured: for each kind, number of connections and server its figures, turn by turn."""

    def __init__(self):
        self.turns, self.memory, self.start = {}, {}, {}

    def add(self, kind, connections, server, figures):
        self.turns.setdefault((kind, connections), {}).setdefault(server, []).append(figures)

    def derive_batches(self, server, sizes):
        """A server without a batch is asked one by one: its batch of N is N GETs, and takes as much."""
        for (kind, connections), found in list(self.turns.items()):
            if kind != "get" or server not in found:
                continue
            for size in sizes:
                if (f"batch-{size}", connections) in self.turns:
                    self.turns[f"batch-{size}", connections][server] = [
                        {**turn, "requests/s": turn["requests/s"] / size, "p50 ms": None, "p99 ms": None}
                        for turn in found[server]
                    ]

    def median(self, kind, connections, server, figure):
        values = [turn[figure] for turn in self.turns.get((kind, connections), {}).get(server, [])]
        return statistics.median(values) if values and None not in values else None

    def ratios(self, kind, connections, above, below, figure="requests/s"):
        """Turn by turn, how many times as much the one does as the other."""
        found = self.turns.get((kind, connections), {})
        return [a[figure] / b[figure] for a, b in zip(found.get(above, []), found.get(below, [])) if b[figure]]

    def table(self, ours):
        head = ["asked", "connections", "server", *FIGURES, *(f"{name} ÷ this" for name in ours)]
        rows = []
        for (kind, connections), found in self.turns.items():
            for server in found:
                medians = [number(self.median(kind, connections, server, figure)) for figure in FIGURES]
                ratios = ["" if name == server else ratio(self.ratios(kind, connections, name, server)) for name in ours]
                rows.append([kind, connections, server, *medians, *ratios])
        return markdown(head, rows)

    def lost(self):
        """What was refused or broke off, in words; nothing where nothing was."""
        found = [(kind, connections, server, sum(turn["lost"] for turn in turns))
                 for (kind, connections), servers in self.turns.items() for server, turns in servers.items()]
        return "".join(f"Refused or broken: {lost} of {server}'s {kind} at {connections} connections.\n"
                       for kind, connections, server, lost in found if lost)

    def memory_table(self):
        rows = [[server, *(number(statistics.median(column)) for column in zip(*found))]
                for server, found in self.memory.items()]
        return markdown(["server", "MiB idle", "MiB at most"], rows)

    def as_json(self):
        measured = [{"asked": kind, "connections": connections, "server": server, "turns": turns}
                    for (kind, connections), found in self.turns.items() for server, turns in found.items()]
        return {"measured": measured, "memory MiB (idle, at most)": self.memory, "seconds to first answer": self.start}
