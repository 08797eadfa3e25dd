"""What a run leaves to be read: figures that add up, in bounded memory, on a page that needs nothing else."""

from __future__ import annotations

import re
import sys
import uuid
from html.parser import HTMLParser

import pytest

from pipelines import run_page, run_svg
from pipelines.ledger import SLOTS, SLOWEST, Ledger, Span, Timeline
from pipelines.tally import Watched
from storage.fs import Location
from storage.s3_meter import Used

STAGES = [["read"], ["hilbert_map", "quantize", "layerize", "frame_encode"], ["write"]]
SECONDS = {"read": 0.02, "hilbert_map": 0.05, "quantize": 0.9, "layerize": 0.1, "frame_encode": 0.4, "write": 0.03}


def watched(units: int = 24, source_bytes: int = 4_000_000) -> Watched:
    """Two workers that take turns over units of which the last is the slowest."""
    ledger = Ledger(1_700_000_000.0)
    for unit in range(units):
        at = ledger.began + unit // 2 * 1.5 + 3
        for kind, seconds in SECONDS.items():
            seconds *= 1 + unit / units
            ledger.add("archive", Span(kind, unit, at, seconds, 5_000_000, 4_000_000, f"10.0.0.1:{unit % 2}"))
            at += seconds
        ledger.done("archive", unit, at, source_bytes)
    return Watched(ledger, {"hilbert_map": 519_000_000, "write": 240_000_000}, Used(), {"archive": STAGES})


def a_run(**changes: object) -> run_page.Run:
    seen = watched()
    values: dict[str, object] = {
        "url": "s3://archives/root/models/minilm", "kind": "model", "name": "minilm", "job": "01000000",
        "seconds": 24.5, "units": 30, "written": 24, "skipped": 6, "source_bytes": 120_000_000,
        "levels": {"level0": 9_580_000, "level1": 13_000_000, "exact": 51_700_000, "tables": 117_000},
        "quality": {"sqnr_db_level0": 20.1, "sqnr_db_level1": 45.8}, "watched": seen, "memory": 500_000_000,
        "nodes": 1, "cpus": 2, "recipe": {"name": "</pre><script>alert(1)</script>"},
        "s3": Used({"get": 31, "put": 120}, 121_000_000, 75_000_000, 24, 120_000_000),
    }  # fmt: skip
    return run_page.Run(**(values | changes))  # type: ignore[arg-type]


def test_a_timeline_keeps_its_sum_whatever_its_length() -> None:
    line = Timeline()
    for at in range(5000):
        line.add(at * 0.7, at * 0.7 + 1.1, 1.1)
    assert sum(line.amounts) == pytest.approx(5500)
    assert len(line.amounts) <= SLOTS < 3500 / 0.05
    middle = line.rates()[2:-2]
    assert min(middle) == pytest.approx(1.1 / 0.7, rel=0.1) == pytest.approx(max(middle), rel=0.1)


def test_a_moment_counts_in_one_slot() -> None:
    line = Timeline()
    line.add(0.12, 0.12, 7)
    line.add(-5, -4, 2)  # a clock that is behind
    assert line.amounts == [2, 0, 7]


def test_a_ledger_of_many_units_stays_small_and_knows_the_slowest() -> None:
    ledger = Ledger(0.0)
    for unit in range(20_000):
        seconds = 1.0 + (unit * 7919 % 20_000) / 1e4
        ledger.add("archive", Span("quantize", unit, unit * 1.0, seconds, 10, 5, "h:1"))
        (span,) = ledger.done("archive", unit, unit + seconds, 100)
        assert (span.operator, span.seconds) == ("quantize", seconds)
    total = ledger.totals["archive", "quantize"]
    assert (total.units, total.bytes_in, total.bytes_out, total.workers) == (20_000, 200_000, 100_000, {"h:1"})
    assert len(ledger.slowest) == SLOWEST and ledger.slowest[0].seconds == pytest.approx(2.9999)
    assert not ledger._open and sys.getsizeof(total.busy.amounts) < 8 * 4 * SLOTS
    assert sum(ledger.written.amounts) == pytest.approx(2_000_000)


def test_what_waits_is_what_left_and_did_not_arrive() -> None:
    ledger = Ledger(0.0)
    for unit in range(5):
        ledger.add("a", Span("read", unit, 0, 1, 0, 0, ""))
    ledger.add("a", Span("quantize", 3, 0, 1, 0, 0, ""))
    assert ledger.waiting("a", "read", "quantize") == 4
    assert ledger.waiting("b", "read", "quantize") == ledger.waiting("a", "quantize", "read") == 0


@pytest.mark.parametrize("seconds, said", [(0, "0"), (0.5, "0.5 s"), (45, "45 s"), (90, "1:30 min"), (120, "2 min"),
                                           (7200, "2 h"), (9000, "2:30 h")])  # fmt: skip
def test_times_are_written_for_people(seconds: float, said: str) -> None:
    assert run_svg.clock(seconds) == said


@pytest.mark.parametrize("whole", [0.02, 0.7, 24.5, 61, 3000, 86_000, 1e6])
def test_ticks_are_few_and_round(whole: float) -> None:
    ticks = run_svg.time_ticks(whole)
    assert 1 <= len(ticks) <= 8 and ticks[0].label == "0" and 0 <= ticks[-1].at <= 100


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "path", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag


def test_a_page_tells_all_and_asks_nobody() -> None:
    text = run_page.page(a_run(), ["20261128T101500000Z.html"])
    tags = _Tags()
    tags.feed(text)
    assert tags.open == [] and {"svg", "table", "details"} <= tags.seen and "script" not in tags.seen
    assert not re.search(r"(src|href)=\"?(https?:|//)|@import|url\(", text)
    assert "&lt;/pre&gt;&lt;script&gt;" in text
    assert len(text.encode()) < 60_000
    for said in ("3.9 MB/s", "6 of 30 by earlier runs", "519 MB", "20.1 dB", "bit-exact", "120 MB in 24 requests",
                 "121 MB read, 75 MB written", 'href="20261128T101500000Z.html"'):  # fmt: skip
        assert said in text, said
    assert text.count("prefers-color-scheme: dark") == 1
    worst = re.findall(r"unit (\d+)</div>", text)
    assert worst[0] == "23" and len(worst) == SLOWEST


def test_a_run_of_which_little_is_known_has_a_page() -> None:
    run = a_run(watched=Watched(Ledger(0.0)), written=0, levels={}, quality={}, source_bytes=0, units=0, seconds=0.0)
    assert "<h1>minilm</h1>" in run_page.page(run)


def test_pages_lie_beside_the_archive_and_name_one_another() -> None:
    root = Location(f"memory://{uuid.uuid4().hex}")
    first = run_page.write(a_run(), root)
    assert first == root.join("runs/models/minilm/20231114T221320000Z.html").url
    later = watched()
    later.ledger.began += 60.5
    second = Location(run_page.write(a_run(watched=later), root)).read().decode()
    assert 'href="20231114T221320000Z.html"' in second and "20231114T221420500Z.html" not in second
