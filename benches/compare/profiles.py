"""Where the processor's time goes: a flame graph and a table by part, for a read of one secret and a batch of 100."""

import collections
import html
import pathlib
import re
import subprocess
import threading

import load
from servers import Portcullis
from tables import markdown

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
CONNECTIONS = 16
SAMPLES_PER_SECOND = 997
STACK_BYTES = 16_384
# Of a drawing, in pixels; and the share of all samples below which a frame is not drawn.
WIDTH, ROW, NARROWEST = 1200, 14, 0.003

# A stack belongs to the first part of which a word is in one of its frames.
PARTS = [
    ("decryption", ["crypto::keyring", "crypto::envelope", "crypto::mask"]),
    # What is not in memory is read by SQLite.
    ("store: records", ["store::readers", "store::cache", "get_many", "look_up"]),
    # What is left of SQLite is the writer's.
    ("audit: SQLite", ["sqlite3_", "store::direct"]),
    ("audit: packing, chaining, signing", ["audit::", "store::writer"]),
    ("policy: the guest", ["[guest]"]),
    ("policy: around the guest", ["policy::", "wasmtime", "Vault::decide"]),
    ("token", ["auth::", "Gate::authenticate", "jsonwebtoken"]),
    ("serialisation", ["http::json", "batch::answer", "serde_json"]),
    ("vault: the rest", ["portcullis::vault"]),
    ("HTTP: sockets", ["poll_flush", "poll_write", "poll_read", "tcp_", "sock_"]),
    ("HTTP: the rest", ["hyper::", "axum", "portcullis::http", "http::"]),
    ("runtime: tasks and threads", ["tokio", "start_thread", "clone3", "schedule", "futex"]),
    ("elsewhere", [""]),
]
COLOURS = {part: f"hsl({at * 360 // len(PARTS)},65%,72%)" for at, (part, _) in enumerate(PARTS)}


def profile(bench):
    """Flame graphs into docs/, and what each part takes of a request."""
    load.need("perf", "linux-perf")
    server = Portcullis("portcullis", bench.program)
    found = {}
    with bench.started([server], bench.options.secrets):
        for kind in ("get", "batch-100"):
            asked = load.Requests(server, kind, bench.options.secrets, bench.scratch)
            asked.drive(CONNECTIONS, 2)
            figures, stacks = watched(asked, bench)
            draw(stacks, DOCS / f"profile-{kind}.svg", f"{kind} at {CONNECTIONS} connections")
            micros = figures["CPU s/1,000"] * 1000 * asked.secrets
            found[kind] = micros, shares(stacks)
    print(table(found), end="\n\n")
    return found


def watched(asked, bench):
    """Drives the server with a profiler beside it: the figures without it, and the stacks with how often each was seen."""
    seconds, data = bench.options.seconds, bench.scratch / "perf.data"
    figures = asked.drive(CONNECTIONS, seconds)
    driving = threading.Thread(target=asked.drive, args=(CONNECTIONS, seconds + 2))
    driving.start()
    subprocess.run(["perf", "record", "--quiet", "--freq", str(SAMPLES_PER_SECOND), "--mmap-pages", "16M", "--call-graph",
                    f"dwarf,{STACK_BYTES}", "--pid", str(asked.server.processes[0].pid), "--output", data, "--",
                    "sleep", str(seconds)], check=True, stderr=subprocess.DEVNULL)
    driving.join()
    text = subprocess.run(["perf", "script", "--no-inline", "--input", data, "--fields", "comm,ip,sym"], check=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    data.unlink()
    return figures, collections.Counter(filter(None, map(stack, text.split("\n\n"))))


def stack(sample):
    """A sample's frames from the outermost to the innermost. What was compiled from a module has no name."""
    lines = sample.strip("\n").splitlines()
    names = [re.sub(r"^\s*[0-9a-f]+\s*", "", line).replace(";", ":") for line in lines[1:]]
    names = [re.sub(r"::h[0-9a-f]{16}$| \(inlined\)$", "", name) for name in names]
    if names and names[0] in ("[unknown]", ""):
        names[0] = "[guest]"
    return (lines[0].strip(), *reversed(names)) if names else None


def shares(stacks):
    """What part of all samples each part has."""
    seen = collections.Counter()
    for frames, count in stacks.items():
        seen[part_of(";".join(frames))] += count
    return {part: count / stacks.total() for part, count in seen.items()}


def part_of(text):
    return next(part for part, words in PARTS if any(word in text for word in words))


def draw(stacks, file, title):
    """A flame graph that hangs: the outermost frame on top, as wide as it is frequent, in the colour of its part."""
    shapes, deepest = [], 0
    level = [(0.0, (), stacks)]
    while level:
        below = []
        for left, path, inside in level:
            following = {}
            for frames, count in inside.items():
                if len(frames) > len(path):
                    following.setdefault(frames[len(path)], {})[frames] = count
            for name in sorted(following):
                share = sum(following[name].values()) / stacks.total()
                if share >= NARROWEST:
                    shapes.append(shape(left, len(path), share, (*path, name)))
                    below.append((left, (*path, name), following[name]))
                left += share
        level, deepest = below, deepest + 1
    legend = "".join(f'<tspan fill="{colour}">■</tspan> {html.escape(part)}  ' for part, colour in COLOURS.items())
    height = (deepest + 2) * ROW
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="9">\n'
        f'<title>{html.escape(title)}</title>\n<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
        f'<text x="4" y="11">{html.escape(title)}</text>\n<text x="4" y="{ROW + 11}" font-size="8">{legend}</text>\n'
        + "\n".join(shapes) + "\n</svg>\n")


def shape(left, depth, share, path):
    """A frame as a rectangle with its name, which a browser shows in full when it is pointed at."""
    name, wide = path[-1], share * WIDTH
    shown = name[:int(wide / 5)] if wide > 30 else ""
    return (f'<g><title>{html.escape(name)}: {100 * share:.1f} %</title><rect x="{left * WIDTH:.1f}" '
            f'y="{(depth + 2) * ROW}" width="{wide:.1f}" height="{ROW - 1}" fill="{COLOURS[part_of(";".join(path))]}"/>'
            f'<text x="{left * WIDTH + 2:.1f}" y="{(depth + 2) * ROW + 10}">{html.escape(shown)}</text></g>')


def table(found):
    kinds = list(found)
    rows = []
    for part in COLOURS:
        cells = []
        for micros, parts in found.values():
            share = parts.get(part, 0)
            cells += [f"{micros * share:.1f}", f"{100 * share:.0f} %"]
        rows.append([part, *cells])
    rows.append(["all", *(cell for micros, _ in found.values() for cell in (f"{micros:.0f}", "100 %"))])
    return markdown(["part", *(cell for kind in kinds for cell in (f"{kind}: µs", "share"))], rows)
