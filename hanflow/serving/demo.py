"""The page of `hanflow demo`: predictions of one or two models for a text. Streamlit runs this file."""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from hanflow.errors import UserError
from hanflow.serving.bundle import Answers, Bundle, answer
from hanflow.serving.inputs import first_texts
from hanflow.serving.sources import open_source
from hanflow.tasks.predictor import Predictor

# Comments instead of strings below the names: Streamlit's magic would print strings on the page.
EXAMPLES = 6  # texts to choose from
CLASSES = 5  # shown at first, at most

# Setting: label, lowest and highest value (more if the model was scored so), step, help.
SLIDERS: dict[str, tuple[str, float, float, float | None, str | None]] = {
    "beams": ("Beams", 1, 10, None, "1 is greedy and the fastest"),
    "max_new_tokens": ("Longest text, in tokens", 1, 256, None, None),
    "min_new_tokens": ("Shortest text, in tokens", 0, 256, None, None),
    "length_penalty": ("Length penalty", -2.0, 4.0, 0.1, "Higher: longer texts, given more beams"),
    "no_repeat_ngram": ("Never repeat this many tokens", 0, 10, None, "0: off"),
    "temperature": ("Temperature", 0.1, 2.0, 0.05, "Below 1 favours likely tokens"),
    "top_k": ("Top k", 0, 200, None, "Sample among this many tokens; 0: all"),
    "top_p": ("Top p", 0.01, 1.0, 0.01, "Sample among the likeliest tokens of this total probability; 1: all"),
}

BOX = (
    "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6; padding: 0.9rem 1.1rem; border-radius: 0.5rem;"
    "border: 1px solid rgba(128, 128, 128, 0.35)"
)


@dataclass(frozen=True)
class Result:
    """The prediction of one model for a text."""

    answers: Answers
    seconds: float
    written: int
    """Tokens of the prediction."""
    reads: int
    """Longest input of the model, in tokens."""
    description: str


@st.cache_resource(show_spinner="Loading the model …")
def opened(path: str) -> tuple[Bundle, Predictor]:
    """A bundle with its model, loaded once for all visitors."""
    bundle = open_source(path)
    return bundle, bundle.predictor()


@st.cache_data
def examples(path: str, _bundle: Bundle) -> list[str]:
    """The first texts of a file of examples."""
    return first_texts(_bundle, path, EXAMPLES)


def main() -> None:
    """Draw the page."""
    options = _options()
    st.set_page_config(
        page_title="hanflow demo", page_icon="📝", layout="wide" if len(options.bundles) > 1 else "centered"
    )
    try:
        loaded = [opened(path) for path in options.bundles]
    except UserError as error:
        st.error(as_text(str(error)))
        return
    first = loaded[0][0]
    names = _names([bundle for bundle, _ in loaded])
    st.title(as_text(names[0]) if len(loaded) == 1 else "Side by side")
    st.caption(
        " · ".join(
            ", ".join([as_text(bundle.task.name), *_parameters(bundle.manifest.counts.get("parameters"))])
            for bundle, _ in loaded
        )
    )
    changes = _controls(first, [name for _, predictor in loaded for name in predictor.adjusts])
    if options.examples:
        _offer(examples(options.examples, first))
    text = st.text_area(
        "Text", key="text", height=220, placeholder="Type or paste a Korean text", label_visibility="collapsed"
    )
    if st.button(first.task.verb, type="primary"):
        st.session_state.results = None
        if not text.strip():
            st.info("There is no text yet: type or paste one above, or choose an example.")
            return
        with st.spinner("Working …"):
            st.session_state.results = [_predicted(bundle, predictor, text, changes) for bundle, predictor in loaded]
    results = st.session_state.get("results")
    if results:
        for column, name, result in zip(st.columns(len(results)), names, results, strict=True):
            with column:
                if len(results) > 1:
                    st.subheader(as_text(name))
                _show(result)


def as_text(text: str) -> str:
    """A text that Streamlit shows as it is, not as Markdown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--examples", default="")
    return parser.parse_args()


def _names(bundles: list[Bundle]) -> list[str]:
    titles = [bundle.manifest.config.get("title") or bundle.folder.resolve().name for bundle in bundles]
    if len(set(titles)) == len(titles):
        return titles
    folders = [str(bundle.folder.resolve()) for bundle in bundles]
    if len(set(folders)) < len(folders):
        return [f"{title}, {number}" for number, title in enumerate(titles, start=1)]
    common = os.path.commonpath(folders)
    return [f"{title} ({os.path.relpath(path, common)})" for title, path in zip(titles, folders, strict=True)]


def _parameters(number: int | None) -> list[str]:
    """The number of parameters for the caption; nothing where the manifest does not have it."""
    if number is None:
        return []
    return [f"{number / 1e6:,.1f} M parameters" if number >= 100_000 else f"{number:,} parameters"]


def _controls(bundle: Bundle, names: Sequence[str]) -> dict[str, Any]:
    """Controls for the named settings, starting from those of the evaluation; returns their values."""
    if not names:
        return {}
    settings: Any = bundle.settings
    classes = len(bundle.manifest.details["facts"].get("labels", ()))
    values: dict[str, Any] = {}
    with st.sidebar:
        st.subheader("Settings")
        for name, (label, low, high, step, help) in SLIDERS.items():
            if name in names:
                now = getattr(settings, name)
                values[name] = st.slider(label, min(low, now), max(high, now), now, step, help=help)
        if "top_classes" in names:  # several at first: the page is for their probabilities
            values["top_classes"] = st.slider("Classes shown", 1, max(classes, 2), min(classes, CLASSES) or 1)
        if "greedy" in names:
            help = "Always the likeliest token, without sampling"
            values["greedy"] = st.toggle("Greedy", settings.greedy, help=help)
    return values


def _offer(texts: list[str]) -> None:
    def take() -> None:
        if st.session_state.example is not None:
            st.session_state.text = texts[st.session_state.example]
            st.session_state.results = None

    st.selectbox(
        "Example",
        range(len(texts)),
        index=None,
        format_func=lambda number: texts[number][:60].replace("\n", " ") + ("…" if len(texts[number]) > 60 else ""),
        placeholder="Choose an example, or write below",
        key="example",
        on_change=take,
        label_visibility="collapsed",
    )


def _predicted(bundle: Bundle, predictor: Predictor, text: str, changes: dict[str, Any]) -> Result | str:
    """The result, or an error message."""
    try:
        mine = {name: value for name, value in changes.items() if name in predictor.adjusts}
        predictor = predictor.with_settings(bundle.with_settings(**mine).settings)
        started = time.perf_counter()
        answers = answer(bundle, predictor, [text])
        seconds = time.perf_counter() - started
    except UserError as error:
        return str(error)
    prediction = answers.predictions.texts[0]
    written = len(predictor.tokenizer(prediction, add_special_tokens=False)["input_ids"])
    return Result(answers, seconds, written, bundle.task.input_limit(bundle.encoding) or 0, predictor.description)


def _show(result: Result | str) -> None:
    if isinstance(result, str):
        st.error(as_text(result))
        return
    answers = result.answers
    if answers.empty[0]:
        st.info("Nothing is left of this text after cleaning: it has only tags or invisible characters.")
        return
    if answers.cut[0]:
        st.warning(
            f"The text has {answers.tokens[0]:,} tokens, the model reads at most {result.reads:,}: the last {answers.cut[0]:,} "
            "were cut off."
        )
    prediction = answers.predictions.texts[0]
    if prediction:
        # As text, not as Markdown: newlines and #Person1# have to show unchanged.
        st.html(f'<div data-testid="prediction" style="{BOX}">{html.escape(prediction)}</div>')
    else:
        st.info("The model generated nothing for this text.")
    _show_columns({name: values[0] for name, values in answers.predictions.columns.items()})
    st.caption(
        f"{result.seconds:.2f} s · {answers.tokens[0] - answers.cut[0]:,} tokens read · {result.written:,} written · "
        f"{result.description}"
    )


def _show_columns(columns: dict[str, Any]) -> None:
    """Further columns of a prediction; class probabilities as bars."""
    for name, value in columns.items():
        shares = _shares(value)
        if shares:
            for label, share in shares.items():
                st.progress(min(max(share, 0.0), 1.0), text=f"{as_text(label)}: {share:.1%}")
        elif isinstance(value, float) and 0 <= value <= 1 and not any(map(_shares, columns.values())):
            st.progress(value, text=f"{as_text(name)}: {value:.1%}")
        elif not isinstance(value, float):
            st.text(f"{name}: {value}")


def _shares(value: Any) -> dict[str, float]:
    """Class → probability of a column that holds them as JSON; empty for any other."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(share, float) for share in found.values()):
        return {}
    return found


if __name__ == "__main__":
    main()
