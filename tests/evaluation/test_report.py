import base64
import csv
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from segaware.errors import EvaluationError
from segaware.evaluation.contestants import Function
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.report import markdown, read_report, table, terminal, write_report
from segaware.evaluation.results import Measure, Results
from segaware.evaluation.runner import evaluate
from segaware.evaluation.sources import open_source
from segaware.evaluation.summary import summarise
from segaware.evaluation.verdict import details, headline

RGB = ("red", "green", "blue")


@pytest.fixture
def measured(labelled, thirds, shrink, tmp_path):
    """A whole evaluation, of which the denoiser fails on one image; and where it lies."""

    protocol = Protocol(noises=(Noise(sigma=15), Noise(sigma=60)), harm=True, draws=2)
    source = open_source(labelled, classes=RGB)
    results = evaluate(source, [shrink(), Flaky()], protocol, judges=[thirds], out=tmp_path / "out")
    return results, tmp_path / "out"


class Flaky(Function):
    """Fails on one image, in words that a page must escape."""

    def __init__(self):
        super().__init__("flaky|one", lambda noisy, sigma: noisy * 0.98)

    def denoise(self, noisy, cell):
        if cell.item.name == "f3":
            raise RuntimeError("<b>broken</b> & gone")
        return super().denoise(noisy, cell)


def made(values, **options):
    """Results of one condition with these PSNRs, a list a contestant."""
    names = list(values)
    n = len(values[names[0]])
    results = Results(
        Protocol(metrics=("psnr",), **options), {"name": "made", "classes": None}, [f"i{k:03}" for k in range(n)],
        [{"name": name, "kind": "k"} for name in names], [],
    )  # fmt: skip
    for name in names:
        for k, value in enumerate(values[name]):
            results.add({"image": f"i{k:03}", "contestant": name, "noise": "sigma 25", "draw": 0, "values": {"psnr": value}})
    return results


def marks(results):
    summary = summarise(results)
    return {name: e.mark for name in results.names if (e := summary.entry("psnr", "sigma 25", name)) is not None}


class TestMarks:
    base = np.random.default_rng(0).normal(30, 3, 30)
    small = np.random.default_rng(1).normal(0, 0.01, 30)

    def test_best_when_the_paired_interval_says_so(self):
        assert marks(made({"noisy": self.base - 10, "a": self.base, "b": self.base + 0.05 + self.small})) == {"noisy": "", "a": "", "b": "best"}

    def test_tied_when_it_does_not(self):
        got = marks(made({"noisy": self.base - 10, "a": self.base, "b": self.base + 0.001 + self.small, "c": self.base - 1}))
        assert got == {"noisy": "", "a": "tied", "b": "tied", "c": ""}

    def test_nobody_without_intervals(self):
        assert set(marks(made({"noisy": [20.0], "a": [30.0]})).values()) == {""}

    def test_a_gap_of_one_image_among_few_is_no_win(self):
        assert marks(made({"a": [30.0, 31, 32], "b": [30.0, 31, 35]}))["b"] == "tied"


def test_details_say_whether_denoising_helps():
    base = TestMarks.base
    lines = details(summarise(made({"noisy": base, "a": base + 3})))
    assert "denoising helps (+3.00 [+3.00, +3.00] against noisy)" in lines[0]
    lines = details(summarise(made({"noisy": base, "a": base - 3 + TestMarks.small})))
    assert "denoising does harm" in lines[0]


def test_one_draw_gives_no_test_over_draws():
    summary = summarise(made({"a": [1.0, 2], "b": [2.0, 4]}))
    assert [c.p_draws for c in summary.comparisons["psnr", "sigma 25"]] == [None]


def test_report_is_rebuilt_from_its_rows(measured, tmp_path):
    results, out = measured
    write_report(results, out, ("json", "csv", "md"))
    again = read_report(out)
    assert list(again.rows()) == list(results.rows()) and again.failures == results.failures
    assert markdown(summarise(again)) == (out / "report.md").read_text(encoding="utf-8")
    write_report(again, tmp_path / "new", ("json", "csv"))
    for name in ("report.json", "rows.csv", "summary.csv"):
        assert (tmp_path / "new" / name).read_text() == (out / name).read_text()


def test_json(measured):
    results, out = measured
    write_report(results, out, ("json",), command="segaware evaluate x")
    record = json.loads((out / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["schema"] == 1 and record["command"] == "segaware evaluate x"
    assert {"protocol", "source", "environment", "contestants", "judges", "images", "summary", "comparisons", "rows"} <= set(record)
    assert len(record["rows"]) == 5 * 3 * (2 + 2 + 1)
    row = next(r for r in record["rows"] if r["contestant"] == "Shrink")
    assert np.array(row["judges"]["Thirds"]["labels"]).sum() == 40 * 56 - 16
    noisy = next(s for s in record["summary"] if (s["measure"], s["noise"], s["contestant"]) == ("psnr", "clean", "noisy"))
    assert noisy["value"] == "inf" and noisy["low"] is None
    miou = next(s for s in record["summary"] if s["measure"] == "miou:Thirds")
    assert len(miou["per_class"]) == 3
    pair = next(c for c in record["comparisons"] if c["measure"] == "psnr" and c["noise"] == "sigma 15")
    assert pair["low"] <= pair["difference"] <= pair["high"] and 0 < pair["p"] <= pair["p_holm"] <= 1
    assert pair["p_draws"] is not None


def test_csv(measured):
    results, out = measured
    write_report(results, out, ("csv",))
    rows = list(csv.DictReader((out / "rows.csv").open()))
    summary = list(csv.DictReader((out / "summary.csv").open()))
    here = [float(r["psnr"]) for r in rows if (r["contestant"], r["noise"]) == ("Shrink", "sigma 15")]
    want = next(s for s in summary if (s["measure"], s["noise"], s["contestant"]) == ("psnr", "sigma 15", "Shrink"))
    assert len(here) == 10 and np.mean(here) == pytest.approx(float(want["value"]))
    assert any("broken" in r["error"] for r in rows) and 0 < float(rows[0]["miou:Thirds"]) <= 1


def test_markdown(measured):
    results, _ = measured
    text = markdown(summarise(results), command="do it")
    assert "| Shrink |" in text and "flaky\\|one" in text and "Not measured" in text and "    do it" in text
    assert "Do no harm" in text and "seed 0 by name" in text and re.search(r"\d\.\d+ \[\d", text)
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ") and "sigma 15" in line}
    assert widths == {4}
    assert re.search(r"\(\d of 5\)", text), "a figure of fewer images says so"


def test_terminal(measured):
    text = terminal(summarise(measured[0]))
    assert "Shrink" in text and "mIoU (%) by Thirds" in text


def test_table_of_one_condition_has_measures_across():
    summary = summarise(made({"noisy": [20.0, 21], "a": [30.0, 32]}))
    rows = table(summary, [Measure("psnr", "PSNR (dB)")], ["sigma 25"])
    assert rows[0] == ["method", "PSNR (dB)"] and rows[2][1].replace("*", "").startswith("31.00 [")


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href") and not value.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_whole_safe_and_self_contained(labelled, thirds, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    source, out = open_source(labelled, classes=RGB), tmp_path / "out"
    results = evaluate(source, [Flaky()], judges=[thirds], out=out, pictures=["f1"])
    write_report(results, out, ("html",))
    text = (out / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and "script" not in reader.tags and "table" in reader.tags
    assert "&lt;b&gt;broken&lt;/b&gt; &amp; gone" in text and "<b>broken" not in text
    assert [source.partition(",")[0] for source in reader.sources] == ["data:image/png;base64", "data:image/jpeg;base64"]  # a plot, a strip
    answer = text[text.index('<section class="answer">') : text.index("</section>")]
    assert all(html.escape(line) in answer for line in headline(summarise(results))) and "Denoising" in answer
    for source, start in zip(reader.sources, (b"\x89PNG", b"\xff\xd8\xff"), strict=True):
        assert base64.b64decode(source.partition(",")[2]).startswith(start)


class TestBad:
    def test_no_report(self, tmp_path):
        with pytest.raises(EvaluationError, match="give a report.json"):
            read_report(tmp_path)

    def test_damaged(self, tmp_path):
        (tmp_path / "report.json").write_text('{"schema": 1, "rows": [')
        with pytest.raises(EvaluationError, match="damaged"):
            read_report(tmp_path)

    def test_another_schema(self, tmp_path):
        (tmp_path / "report.json").write_text('{"schema": 99}')
        with pytest.raises(EvaluationError, match="schema 99"):
            read_report(tmp_path)

    def test_a_row_of_something_else(self, tmp_path):
        results = made({"a": [1.0, 2]})
        with pytest.raises(EvaluationError, match="does not fit"):
            results.add({"image": "i000", "contestant": "stranger", "noise": "sigma 25", "draw": 0})

    def test_format(self, tmp_path):
        with pytest.raises(EvaluationError, match="'pdf' is unknown"):
            write_report(made({"a": [1.0]}), tmp_path, ("pdf",))
