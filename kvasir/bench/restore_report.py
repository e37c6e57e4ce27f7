"""What `kvasir bench restore` says to people: a table, what was to be reached, and remarks.

Everything is computed from a report's samples, so a recorded file can be judged anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvasir.bench.report import number, remarks
from kvasir.bench.restore_chats import Conversation
from kvasir.bench.restore_kvasir import GB, PLAIN, SAVING
from kvasir.bench.restore_sizes import RestoreSizes
from kvasir.bench.results import Better, Figure, Report, median

BARE = "bare steps"
DISK = "the disk"

READ_SHARE = 0.7  # of the disk's own sequential speed
RESTART_TIMES = 2.0
MEMORY_TIMES = 1.2
SLOWER = 0.10
COMPUTED_TIMES = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that was to be reached, and how far it was."""

    title: str
    found: float
    bound: float
    unit: str
    better: Better

    @property
    def reached(self) -> bool:
        """Whether ``found`` is on the right side of ``bound``."""
        if self.better is Better.HIGHER:
            return self.found >= self.bound
        return self.found <= self.bound


def figures(sizes: RestoreSizes, conversations: Sequence[Conversation]) -> tuple[Figure, ...]:
    """The rows of the table, in order."""
    high, low = Better.HIGHER, Better.LOWER
    return (
        Figure("cold", f"first token, question on {sizes.text:,} tokens, cold", "s", low),
        Figure("memory", "reused in memory", "s", low),
        Figure("evicted_cold", "evicted to disk, page cache dropped", "s", low),
        Figure("evicted_warm", "evicted to disk, page cache warm", "s", low),
        Figure("restart_cold", "after a restart, page cache dropped", "s", low),
        Figure("restart_warm", "after a restart, page cache warm", "s", low),
        Figure("question", f"a step of {sizes.question} tokens", "s", low),
        Figure("decode", "a step of one token", "s", low),
        Figure("reading", f"reading {sizes.text:,} tokens, mean of two in a row", "s", low),
        Figure("disk_token", "bytes on disk per token", "B", low),
        Figure("write", "writing and flushing", "GB/s", high),
        Figure("read_cold", "reading, page cache dropped", "GB/s", high),
        Figure("read_warm", "reading, page cache warm", "GB/s", high),
        Figure("save", "saving the state of the text", "s", low),
        *(Figure(c.key, f"{c.title}: computed / new", "x", low) for c in conversations),
    )


def targets(report: Report) -> Iterator[Target]:
    """What is to be reached, as far as the run has the figures for it."""
    low, high = Better.LOWER, Better.HIGHER

    def of(arm: str, figure: str) -> float | None:
        return median(report.samples, arm, figure)

    read, disk_read = of(SAVING, "read_cold"), of(DISK, "read_cold")
    if read and disk_read:
        share = read / disk_read
        title = "records are read at this share of the disk's own speed, page cache dropped"
        yield Target(title=title, found=share, bound=READ_SHARE, unit="", better=high)
    question_s, decode_s = of(BARE, "question"), of(BARE, "decode")
    if question_s and decode_s:
        for cache, words in (("cold", "dropped"), ("warm", "warm")):
            first_s, bandwidth = of(SAVING, f"restart_{cache}"), of(DISK, f"read_{cache}")
            if first_s and bandwidth:
                load_s = _loaded_bytes(report, f"restart_{cache}") / (bandwidth * GB)
                yield Target(
                    title=f"after a restart, page cache {words}: first token within "
                    f"{RESTART_TIMES:g} x (bytes / bandwidth + question + one decode step)",
                    found=first_s,
                    bound=RESTART_TIMES * (load_s + question_s + decode_s),
                    unit="s",
                    better=low,
                )
        memory_s = of(SAVING, "memory")
        if memory_s:
            yield Target(
                title=f"reused in memory: first token within {MEMORY_TIMES:g} x "
                "(question + one decode step)",
                found=memory_s,
                bound=MEMORY_TIMES * (question_s + decode_s),
                unit="s",
                better=low,
            )
    saving_s, plain_s = of(SAVING, "reading"), of(PLAIN, "reading")
    if saving_s and plain_s:
        title = "saving slows reading by this share"
        yield Target(title=title, found=saving_s / plain_s - 1, bound=SLOWER, unit="", better=low)
    for figure in report.figures:
        ratio = of(SAVING, figure.key) if figure.unit == "x" else None
        if ratio is not None:
            yield Target(
                title=figure.title, found=ratio, bound=COMPUTED_TIMES, unit="x", better=low
            )


def _loaded_bytes(report: Report, figure: str) -> float:
    """The median of what was loaded; where a part was computed instead, it does not count."""
    found = sorted(
        sample.facts["loaded_bytes"]
        for sample in report.samples
        if sample.arm == SAVING and sample.figure == figure
    )
    return float(found[len(found) // 2])


def markdown(report: Report) -> str:
    """The whole report."""
    machine = report.machine
    lines = [
        f"# KV brought back, {report.date[:10]}",
        "",
        f"`{report.command}` at commit {report.commit[:7] or 'unknown'}"
        f"{' with changes' if report.commit_dirty else ''}. {report.model} in {report.dtype}, "
        f"{report.threads} threads of {machine.cpu} ({machine.cores} cores), medians of "
        f"{report.repeats} repeats, text: {report.text}.",
        "",
        *_table(report),
        "",
        "| to be reached | found | bound | |",
        "|---|---|---|---|",
        *(_row(target) for target in targets(report)),
        "",
        *_shares(report),
        *_conversations(report),
        *(f"- {line}" for line in remarks(report)),
    ]
    return "\n".join(lines) + "\n"


def _table(report: Report) -> Iterator[str]:
    arms = [arm.name for arm in report.arms if not arm.skipped]
    yield f"| | unit | {' | '.join(arms)} |"
    yield "|" + "---|" * (len(arms) + 2)
    for figure in report.figures:
        values = [median(report.samples, arm, figure.key) for arm in arms]
        if any(value is not None for value in values):
            cells = ["" if value is None else _cell(figure, value) for value in values]
            yield f"| {figure.title} | {figure.unit} | {' | '.join(cells)} |"


def _cell(figure: Figure, value: float) -> str:
    return f"{value:.3f}" if figure.unit == "x" else number(value)


def _row(target: Target) -> str:
    sign = ">=" if target.better is Better.HIGHER else "<="
    found, bound = (f"{value:.4g} {target.unit}".strip() for value in (target.found, target.bound))
    verdict = "pass" if target.reached else "FAIL"
    return f"| {target.title} | {found} | {sign} {bound} | {verdict} |"


def _shares(report: Report) -> Iterator[str]:
    """How fast records are moved, as shares of what the disk itself does."""
    for figure in report.figures:
        disk = median(report.samples, DISK, figure.key) if figure.unit == "GB/s" else None
        for arm in report.arms:
            value = median(report.samples, arm.name, figure.key)
            if disk and value and arm.name != DISK:
                yield f"- {arm.name}, {figure.title}: {value / disk:.0%} of the disk's own speed"


def _conversations(report: Report) -> Iterator[str]:
    titles = {figure.key: figure.title for figure in report.figures if figure.unit == "x"}
    for sample in report.samples:
        if sample.figure in titles:
            facts = sample.facts
            yield (
                f"- {titles[sample.figure]}: {facts['turns']} turns, {facts['restarts']} restarts; "
                f"prompts of {facts['prompt_tokens']:,} tokens in all, of these "
                f"{facts['new_tokens']:,} new, {facts['computed_tokens']:,} computed, "
                f"{facts['disk_tokens']:,} from disk; the worst turn computed "
                f"{facts['most_behind']} that an earlier one had. What is said is running text of "
                "these lengths. The last token of an answer is always computed by the next turn, "
                "and counts as not new"
            )
