"""The demo: what a visitor types, presses and sees; in Streamlit's own harness, and once in a real browser."""

from __future__ import annotations

import html
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanflow.cli import use
from hanflow.cli.main import main
from hanflow.serving.bundle import answer, open_bundle
from hanflow.storage.artifacts import read_manifest
from tests.support.corpora import petitions
from tests.support.model_fixtures import rewritten

testing = pytest.importorskip("streamlit.testing.v1", reason="Streamlit is not installed: pip install 'hanflow[demo]'")

from hanflow.serving.demo import as_text  # noqa: E402  it imports Streamlit

PAGE = Path(__file__).parents[2] / "hanflow" / "serving" / "demo.py"
TEXT = petitions(1)[0][0]
LONG = "국민 청원에 답하라. " * 5_000


@pytest.fixture(scope="module")
def twin(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(bundle, tmp_path_factory.mktemp("twin") / "other"))


def opened(monkeypatch: pytest.MonkeyPatch, *bundles: Path) -> testing.AppTest:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--examples", str(use.SAMPLE), *map(str, bundles)])
    page = testing.AppTest.from_file(str(PAGE), default_timeout=60).run()
    assert not page.exception
    return page


def pressed(page: testing.AppTest, text: str) -> testing.AppTest:
    page.text_area(key="text").set_value(text)
    page.button[0].click().run()
    assert not page.exception
    return page


def shown(page: testing.AppTest) -> list[str]:
    """Predictions as a browser would show them."""
    return [html.unescape(re.sub("<[^>]*>", "", element.proto.body)) for element in page.get("html")]


def expected(bundle: Path, text: str, **changes: int) -> str:
    opened = open_bundle(str(bundle), changes)
    return answer(opened, opened.predictor(), [text]).predictions.texts[0]


def test_a_text_is_summarized_as_predict_does(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened(monkeypatch, bundle)
    assert page.title[0].value == "나의 요약"
    assert not page.markdown, "Streamlit's magic prints what it takes for a page's text"
    assert shown(page) == []
    pressed(page, TEXT)
    assert shown(page) == [expected(bundle, TEXT)]
    assert re.search(r"^\d+\.\d\d s · \d+ tokens read · \d+ written · ctranslate2, float32$", page.caption[-1].value)


def test_the_controls_start_as_scored_and_work(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened(monkeypatch, bundle)
    assert [slider.value for slider in page.slider] == [2, 12, 4, 1.0, 2]
    page.slider[0].set_value(1)
    page.slider[1].set_value(5)
    assert shown(pressed(page, TEXT)) == [expected(bundle, TEXT, beams=1, max_new_tokens=5)]
    page.slider[2].set_value(200)
    pressed(page, TEXT)
    assert as_text("min_new_tokens=200 is above the longest text") in page.error[0].value


def test_empty_and_very_long_texts_are_explained(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened(monkeypatch, bundle)
    pressed(page, "  \n ")
    assert "type or paste one" in page.info[0].value and shown(page) == []
    pressed(page, "\u200b\u200b")
    assert "Nothing is left of this text" in page.info[0].value and shown(page) == []
    pressed(page, LONG)
    assert re.search(
        r"has [\d,]+ tokens, the model reads at most 64: the last [\d,]+ were cut off", page.warning[0].value
    )
    assert len(shown(page)) == 1


def test_two_bundles_stand_side_by_side(bundle: Path, twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = pressed(opened(monkeypatch, bundle, twin), TEXT)
    common = os.path.commonpath([bundle, twin])
    assert shown(page) == [expected(bundle, TEXT)] * 2
    assert [heading.value for heading in page.subheader if "나의 요약" in heading.value] == [
        as_text(f"나의 요약 ({path.relative_to(common)})") for path in (bundle, twin)
    ]


def test_a_title_is_no_markdown(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It comes out of a stranger's file: no link, no picture, no colour, no formula."""
    title = "![x](https://example.com/pixel) **굵게** :red[빨강] $E=mc^2$ <b>가</b> `나`"
    shutil.copytree(bundle, tmp_path / "bundle")
    held = read_manifest(bundle, "bundle").config
    rewritten(tmp_path / "bundle", "bundle", config={**held, "title": title})
    value = opened(monkeypatch, tmp_path / "bundle").title[0].value
    assert re.sub(r"\\(.)", r"\1", value) == title
    assert not re.search(r"(?<!\\)[!-/:-@\[`{-~^_]", re.sub(r"\\.", "", value))


def test_an_example_fills_the_text(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened(monkeypatch, bundle)
    page.selectbox(key="example").select_index(1).run()
    assert page.text_area(key="text").value == petitions_of_the_sample(2)[1]
    assert len(shown(pressed(page, page.text_area(key="text").value))) == 1


def petitions_of_the_sample(count: int) -> list[str]:
    from hanflow.data.readers import read_texts, text_source

    rows = read_texts(text_source(str(use.SAMPLE), "news"))
    return [next(rows).texts[0] for _ in range(count)]


def test_markup_and_speakers_are_shown_as_text(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "#Person1#: <b>안녕</b> & 반가워\n\n#Person2#: *그래*"
    page = opened(monkeypatch, bundle)
    monkeypatch.setattr(
        "hanflow.generation.generator.Generator.decode", lambda *_: [text], raising=True
    )  # no tiny model says this
    pressed(page, TEXT)
    assert shown(page) == [text]
    assert "<b>" not in page.get("html")[0].proto.body


def test_mistakes_are_reported_before_a_server_starts(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(os, "execv", never)

    def error_of(*options: str | Path) -> str:
        assert main(["demo", *map(str, options)]) == 1
        return capsys.readouterr().err

    assert "holds no bundle, run or model" in error_of(tmp_path)
    assert "give one or two" in error_of(bundle, bundle, bundle)
    assert "--port: 70000 is not a port" in error_of(bundle, "--port", "70000")
    assert "cannot be read" in error_of(bundle, "--examples", tmp_path / "nowhere.txt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'hanflow[demo]'" in error_of(bundle)


# In a real browser


@pytest.fixture(scope="module")
def server(bundle: Path, twin: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hanflow.cli.main", "demo", str(bundle), str(twin), "--port", str(port)]
    process = subprocess.Popen(command, cwd=PAGE.parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://localhost:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health")
                break
            except urllib.error.URLError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def test_a_visitor_with_a_browser(server: str, bundle: Path, tmp_path: Path) -> None:
    """Screenshots go to the folder that HANFLOW_SCREENSHOTS names, for people to look at."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    pictures = Path(os.environ.get("HANFLOW_SCREENSHOTS") or tmp_path)
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1150})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        box, button = page.locator("textarea"), page.get_by_role("button", name="Summarize")
        box.wait_for(timeout=60_000)

        def press(text: str) -> None:
            box.fill(text)
            box.press("Control+Enter")
            button.click()

        predictions = page.locator("[data-testid=prediction]")
        press(TEXT)
        predictions.nth(1).wait_for(timeout=60_000)
        assert predictions.count() == 2
        assert " ".join(predictions.first.inner_text().split()) == " ".join(expected(bundle, TEXT).split())
        page.screenshot(path=pictures / "summary.png", full_page=True)
        press("")
        page.get_by_text("There is no text yet").wait_for(timeout=60_000)
        page.screenshot(path=pictures / "empty.png", full_page=True)
        press(LONG)
        page.get_by_text("were cut off").first.wait_for(timeout=60_000)
        page.screenshot(path=pictures / "long.png", full_page=True)
        page.set_viewport_size({"width": 420, "height": 1150})
        page.screenshot(path=pictures / "phone.png", full_page=True)
        assert page.get_by_role("alert").filter(has_text="Traceback").count() == 0
        assert errors == []
        browser.close()
