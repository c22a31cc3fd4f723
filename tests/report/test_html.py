from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from graphopt.report import html
from graphopt.report.model import Report

VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers tables, text and everything that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if not {"script", "style"} & set(self.open):
            self.text += data


@pytest.fixture
def page(report: Report) -> Page:
    return Page(report.to_html())


def test_figures_are_there(page: Page) -> None:
    assert ["parameters", "25.6 M", "12.8 M", "-50.0 %"] in page.rows
    assert ["measured latency", "33.2 ms", "30.1 ms", "-9.3 %"] in page.rows
    assert ["top1 (500 samples)", "0.91", "0.905", ""] in page.rows
    assert ["fold-constants", "max_bytes = 1024", "4.00 G", "25.6 M", "102 MB", "7.20 MB", "160", "100 µs"] in page.rows
    assert "its input has two uses" in page.text
    assert "the model <i>declares</i> opset 8" in page.text


def test_nodes_are_sorted_and_carry_their_numbers(page: Page, report: Report) -> None:
    names = [row[0] for row in page.rows if row[0] in {node.name for node in report.after.per_node}]
    assert names[:3] == ["/body/conv<1>[red]", "small", "mystery"]
    assert 'data-v="4000000000"' in report.to_html()


def test_nothing_is_loaded_from_anywhere(page: Page, report: Report) -> None:
    assert page.links == []
    text = report.to_html()
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_names_of_the_model_are_no_markup(page: Page, report: Report) -> None:
    assert not page.tags & {"b", "i"}
    assert report.to_html().count("<script>") == 1


def test_model_in_memory_without_passes(report: Report) -> None:
    report.input = dataclasses.replace(report.input, path=None)
    report.passes, report.pipeline, report.quality, report.latency = [], "", None, None
    assert "model in memory" in Page(report.to_html()).text


def test_huge_graphs_are_cut_and_say_so(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "NODE_LIMIT", 2)
    page = Page(report.to_html())
    assert "the 2 dearest of 3 nodes" in page.text
    assert not any(row[0] == "mystery" for row in page.rows)


def test_the_page_says_what_the_terminal_does(report: Report) -> None:
    idle = dataclasses.replace(
        report.passes[-1], name="prune", exact=False, modified=False, facts={"unchanged": "too <narrow>"}
    )
    page = Page(html.render(dataclasses.replace(report, passes=(*report.passes, idle))))
    assert "'prune' changed nothing: too <narrow>" in page.text
    assert "1 of 3 exact passes found nothing to rewrite" in page.text
