"""The cost of a training step on many ranks, from measured times and the constants of a link.

A step computes, sends two messages for each norm (:mod:`invocupy.ops.ranks`) and adds up the
gradients in one. With n ranks, latency L and bandwidth B of a link, messages of m bytes take
(Thakur, Rabenseifner and Gropp 2005)

    allreduce   2 * (n - 1) / n * m / B + 2 * log2(n) * L       recursive halving, then doubling
    allgather       (n - 1)     * m / B +     log2(n) * L       recursive doubling

and do not overlap with the computation, as in the trainer. The model leaves out ranks that wait for
a slower one, and messages that share a link.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

RANKS = (8, 64, 512, 4096)
TOGETHER = 4096  # images of a batch of fixed size, for any number of ranks


class Link(NamedTuple):
    """The link between any two ranks."""

    name: str
    latency: float  # seconds
    bandwidth: float  # bytes per second


# Not measured: typical values of such links, with the cost of the software.
LINKS = (
    Link("10 GbE", 30e-6, 1.1e9), Link("100 Gb/s", 3e-6, 11e9), Link("NVLink", 10e-6, 200e9),
)  # fmt: skip


class Step(NamedTuple):
    """Seconds of a step."""

    compute: float
    gradients: float
    latency: float  # for the latency of the norms' messages
    volume: float  # for the bytes of the norms' messages

    @property
    def total(self) -> float:
        """The seconds of the whole step."""
        return sum(self)


def allreduce(size: float, ranks: int, link: Link) -> float:
    """Seconds for ``size`` bytes."""
    return 2 * (ranks - 1) / ranks * size / link.bandwidth + 2 * math.log2(ranks) * link.latency


def compute(network: dict[str, Any], images: float) -> float:
    """Seconds for a rank's images: by a line through the two measured sizes, or the only one."""
    (few, fast), *more = sorted((int(n), t["median"]) for n, t in network["seconds"].items())
    if not more:
        return fast * images / few  # type: ignore[no-any-return]
    many, slow = more[-1]
    each = (slow - fast) / (many - few)
    return max(fast - each * few, 0.0) + each * images  # type: ignore[no-any-return]


def step(
    network: dict[str, Any], images: float, ranks: int, link: Link, group: int | None = None
) -> Step:
    """A step with ``images`` on each rank; norms see the batch of ``group`` ranks, or of all."""
    group = min(ranks, group or ranks)
    return Step(
        compute(network, images),
        allreduce(network["gradient_bytes"], ranks, link),
        network["norm_messages"] * math.log2(group) * link.latency,
        (group - 1) * network["norm_bytes"] / link.bandwidth,
    )


def efficiency(network: dict[str, Any], ranks: int, link: Link, group: int | None = None) -> float:
    """The share of a step that computes, with as many images per rank as on a single rank."""
    taken = step(network, network["images"], ranks, link, group)
    return taken.compute / taken.total


def networks(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks measured here, and the article's on a GPU, which was measured before."""
    return [*results["networks"], *results["gpu"]]


def links_of(network: dict[str, Any]) -> list[Link]:
    """The links of a network's devices: CPUs have no NVLink."""
    return [link for link in LINKS if network["on"].startswith("GPU") or link.name != "NVLink"]


def percent(share: float) -> str:
    """Whole percents; tenths if less than all would be rounded to 100 %."""
    if share < 0.995 or share == 1:
        return f"{100 * share:.0f} %"
    return f"{math.floor(1000 * share) / 10:.1f} %"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def amount(size: float) -> str:
    """Bytes with a unit."""
    for unit, one in (("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size:.0f} B"


def rows(header: str, lines: list[list[str]]) -> list[str]:
    """A Markdown table."""
    columns = header.split(" | ")
    rule = ["---" if i == 0 else "---:" for i in range(len(columns))]
    return [f"| {' | '.join(line)} |" for line in (columns, rule, *lines)]


def shared_memory(results: dict[str, Any]) -> Link:
    """The link between two ranks here: latency by small gathers, bandwidth by large sums."""
    fits = results["links"]["2"]
    # For two ranks allreduce is m / B + 2 L, allgather m / B + L.
    return Link("shared memory", fits["allgather"]["latency"], fits["allreduce"]["bandwidth"])


def expected(results: dict[str, Any], run: dict[str, Any]) -> float:
    """The model's time of a run here, given how long its ranks compute side by side."""
    link = shared_memory(results)
    ranks, messages = run["ranks"], run["messages"]
    if ranks == 1:
        return run["alone"]["median"]  # type: ignore[no-any-return]
    gathers = messages["allgather"]
    return (  # type: ignore[no-any-return]
        run["alone"]["median"]
        + allreduce(messages["allreduce_sum"]["bytes"], ranks, link)
        + gathers["count"] * math.log2(ranks) * link.latency
        + (ranks - 1) * gathers["bytes"] / link.bandwidth
    )


def table(results: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = _measured(results), _links(results), _predicted(results), _ways_out(results)
    return "\n\n".join("\n".join(part) for part in parts)


def _measured(results: dict[str, Any]) -> list[str]:
    about, lines = results["machine"], []
    packages = ", ".join(f"{k} {v}" for k, v in about["packages"].items() if v)
    text = (
        f"Measured with `benchmarks/scaling.py` on {results['date']}: {about['devices']['cpu']}, "
    )
    text += f"{results['mpi']}, invocupy {about['invocupy']}, {packages}."
    if results["note"]:
        text += f" The machine meanwhile: {results['note']}."
    for run in results["runs"]:
        messages, took, guess = run["messages"].values(), run["together"], expected(results, run)
        count, size = (sum(kind[what] for kind in messages) for what in ("count", "bytes"))
        times = [duration(took[name]) for name in ("median", "low", "high")]
        line = [f"{run['ranks']} x {run['images']}", str(run["threads"])]
        line += ["{} ({} to {})".format(*times)]
        line += [f"{run['ranks'] * run['images'] / took['median']:.0f}"]
        line += [f"{count}, {amount(size)}" if count else "none"]
        line += [percent(kind["seconds"] / took["median"] if count else 0) for kind in messages]
        line += [duration(guess), f"{100 * (took['median'] / guess - 1):+.0f} %"]
        lines.append(line)
    header = "ranks x images | threads per rank | step (20 to 80 %) | images/s | messages per step"
    header += " | in norms' messages | in gradients' messages | model | gap"
    return [
        text, "", "Steps of a SimpleModel of 10 layers:", "", *rows(header, lines), "",
        "*In messages* is the share of the step that they take, including the wait for others.",
        "The *model* is the time of the same ranks side by side without messages, plus the cost of",
        "the messages by the first two lines of the next table. More ranks than the "
        f"{results['cores']} cores share",
        "them, which the model ignores.",
    ]  # fmt: skip


def _links(results: dict[str, Any]) -> list[str]:
    lines = []
    for ranks, fits in results["links"].items():
        for kind, fit in fits.items():
            cost = [duration(fit["latency"]), f"{fit['bandwidth'] / 1e9:.2g} GB/s"]
            lines.append([f"{kind}, {ranks} ranks here", *cost, percent(fit["off"])])
    for link in LINKS:
        cost = [duration(link.latency), f"{link.bandwidth / 1e9:g} GB/s"]
        lines.append([f"{link.name}, assumed", *cost, ""])
    return rows("link | latency | bandwidth | largest error of the fit", lines)


def _predicted(results: dict[str, Any]) -> list[str]:
    growing, fixed = [], []
    for network in networks(results):
        name = f"{network['name']}, {network['on']}"
        for link in links_of(network):
            last = step(network, network["images"], RANKS[-1], link)
            cells = [percent(efficiency(network, n, link)) for n in RANKS]
            largest = _largest(last._replace(compute=0))
            growing.append([f"{name}, {network['images']} images", link.name, *cells, largest])
            if len(network["seconds"]) < 2:  # the time of fewer images is unknown
                continue
            steps = [step(network, TOGETHER / n, n, link) for n in RANKS]
            whole = compute(network, TOGETHER)
            shares = [whole / (n * taken.total) for n, taken in zip(RANKS, steps, strict=True)]
            fixed.append([name, link.name, *map(percent, shares), _largest(steps[-1])])
    counts = " | ".join(f"{n:,} ranks" for n in RANKS)
    return [
        "Predicted share of a step that is spent on computing, with the images per rank as above:",
        "",
        *rows(f"network | link | {counts} | most of the rest", growing), "",
        f"Predicted speed-up per rank, with {TOGETHER:,} images per step in all:",
        "",
        *rows(f"network | link | {counts} | bound by", fixed),
    ]  # fmt: skip


def _largest(taken: Step) -> str:
    names = {
        "compute": "computing", "gradients": "gradients",
        "latency": "latency of norms", "volume": "bytes of norms",
    }  # fmt: skip
    return names[max(names, key=lambda name: getattr(taken, name))]


def _ways_out(results: dict[str, Any]) -> list[str]:
    lines, ranks = [], RANKS[-1]
    for network in networks(results):
        for link in links_of(network):
            taken = step(network, network["images"], ranks, link)
            # pairs of ranks merge, then pairs of pairs
            tree = math.log2(ranks) * network["norm_bytes"] / link.bandwidth
            groups = step(network, network["images"], ranks, link, group=8)
            local = taken._replace(latency=0.0, volume=0.0)
            # the last of eight parts overlaps with nothing
            rest = max(local.gradients - local.compute / 2, local.gradients / 8)
            hidden = local._replace(gradients=rest)
            ways = [taken, taken._replace(volume=tree), groups, local, hidden]
            cells = [percent(way.compute / way.total) for way in ways]
            lines.append([f"{network['name']}, {network['on']}", link.name, *cells])
    header = "network | link | now | norms merged in a tree | norms of 8 ranks | norms local"
    return [
        f"What would help {ranks:,} ranks, as the share of a step that is spent on computing:", "",
        *rows(f"{header} | and gradients sent in 8 parts during backward", lines),
    ]  # fmt: skip
