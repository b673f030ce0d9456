"""Report pages: readable without the network, and no text of the data can break or script them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hanflow.metrics import lengths
from hanflow.reports import html, training

NASTY = "<script>alert(1)</script> & \"'$x_1$ \x00\ud800 국민"


class Ids(HTMLParser):
    """Collects ids, what refers to them, and every tag."""

    def __init__(self, content: str):
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = re.findall(r"url\(#([^)]+)\)", content)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href", "src"):
                self.links.append(value or "")


def whole_page() -> str:
    generator = np.random.default_rng(0)
    series = {
        "source": generator.integers(10, 500, 999),
        NASTY: generator.integers(2, 50, 99),
        "none": np.zeros(0, int),
    }
    charts = html.histogram({name: lengths.summary(values) for name, values in series.items()}, "tokens")
    curves = html.lines({"train": [(i, 1 / (i + 1)) for i in range(50)], "validation": [(3, 0.5)]}, "step", "loss")
    sections = [
        html.Section(NASTY, html.table(["name", NASTY], [[NASTY, 1], ["b", None]]), NASTY),
        html.Section("Charts", charts + curves + curves),
        html.Section("Examples", html.example(NASTY, {NASTY: html.text(NASTY * 40, 100)}, NASTY)),
    ]
    return html.page(NASTY, sections, NASTY)


def test_a_page_needs_no_network_no_script_and_is_utf8() -> None:
    content = whole_page()
    content.encode("utf-8")
    found = Ids(content)
    assert "script" not in found.tags
    assert [link for link in found.links if not link.startswith("#")] == []
    assert not {"link", "img", "iframe", "object"} & set(found.tags)
    assert "@import" not in content
    assert "\x00" not in content
    assert "국민" in content
    assert content.count("<section") == content.count('href="#section-') == 3


def test_charts_of_one_page_do_not_borrow_each_others_parts() -> None:
    found = Ids(whole_page())
    referred = {*found.references, *(link[1:] for link in found.links)}
    assert referred <= set(found.ids)
    charts = [i for i in found.ids if not i.startswith("section-")]
    first_curve = {i for i in charts if charts.count(i) > 1}
    assert len({i.split("-")[0] for i in first_curve}) == 1  # only the very same chart, drawn twice, repeats ids


def test_the_same_input_gives_the_same_bytes() -> None:
    assert whole_page() == whole_page()


def test_a_matplotlibrc_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = whole_page()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert whole_page() == before


def test_charts_keep_text_as_text_in_the_pages_colours() -> None:
    chart = html.histogram({"source": lengths.summary(np.array([1, 2, 3, 400]))}, "tokens")
    assert ">source<" in chart
    assert "4 rows · mean 101.5 · median 2 · 95 %" in chart
    assert "var(--series-1)" in chart
    assert "var(--ink)" in chart
    for left in (html.INK, html.MUTED, html.RULE, "DejaVu", "<metadata", "<?xml"):
        assert left not in chart


def test_numbers_stand_right_and_are_short() -> None:
    table = html.table(["system", "score", "rows"], [["lead-1", np.float64(0.50486), 12345], ["b", None, np.int64(2)]])
    assert '<td class="number">0.5049</td><td class="number">12,345</td>' in table
    assert '<td class="number">–</td><td class="number">2</td>' in table
    assert '<th scope="col" class="number">score</th>' in table
    assert [html.number(v) for v in (0.0, 3e-5, 123456.0, True, "a")] == ["0.0000", "3e-05", "1.235e+05", "yes", "a"]


def test_long_texts_are_folded_and_empty_ones_marked() -> None:
    assert "<details>" not in html.text("가" * 600, 600)
    folded = html.text("가" * 601, 600)
    assert folded.startswith("<details><summary>")
    assert "(601 characters)" in folded
    assert "(empty)" in html.text(" \n")


def test_nothing_recorded_is_stated() -> None:
    assert "Nothing was recorded" in html.lines({"train": []}, "step", "loss")
    assert "Nothing to show" in html.histogram({}, "tokens")
    assert "<svg" in html.lines({"train": [(1, 2.0)]}, "step", "loss")


def test_figures_that_are_not_finite_have_no_place_on_a_curve() -> None:
    figures = (1.0, None, float("nan"), float("inf"), 2.0)
    history = {"train": [{"step": step, "loss": loss} for step, loss in enumerate(figures)], "validation": []}
    assert training._points(history["train"], "loss") == [(0, 1.0), (4, 2.0)]
    assert "<svg" in training.render({"history": history, "steps": 5, "device": "cpu"})
