"""ROUGE on Korean: a wrong score here would crown the wrong model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanflow.metrics import rouge
from hanflow.text.scoring_tokens import TOKENIZATIONS, Tokenization
from tests.support import nasty

ROUNDING = 1e-12
"""Ratios of small whole numbers in float64, and means of a few of them: off by some 1e-16 at most."""

# Prediction, reference, tokenization, then (matches, units of the prediction, units of the reference) of each variant.
BY_HAND = [
    # 정부/는/청원/에/답변/했/다 and 정부/가/청원/에/답변/했/다: all but 는 and 가, in the same order; pairs 청원-에, 에-답변,
    # 답변-했, 했-다 of 6.
    ("정부는 청원에 답변했다", "정부가 청원에 답변했다", "morpheme", (6, 7, 7), (4, 6, 6), (6, 7, 7), (6, 7, 7)),
    # The same by words: 청원에 답변했다 of three, one pair of two.
    ("정부는 청원에 답변했다", "정부가 청원에 답변했다", "word", (2, 3, 3), (1, 2, 2), (2, 3, 3), (2, 3, 3)),
    # 정부는청원에답변했다 has 10 syllables, 9 are shared; of 9 pairs 부-는 and 는-청 are not.
    ("정부는 청원에 답변했다", "정부가 청원에 답변했다", "character", (9, 10, 10), (7, 9, 9), (9, 10, 10), (9, 10, 10)),
    # 학교/에/갔/다 and 학교/에/간다: the past tense splits off, the present does not. One pair of 3 and of 2.
    ("학교에 갔다", "학교에 간다", "morpheme", (2, 4, 3), (1, 3, 2), (2, 4, 3), (2, 4, 3)),
    # 아이/들/을/지켜/주/세요 and 아이/들/을/지켜/주/십시오: spacing and politeness differ, five morphemes and four pairs don't.
    ("아이들을 지켜 주세요", "아이들을 지켜주십시오", "morpheme", (5, 6, 6), (4, 5, 5), (5, 6, 6), (5, 6, 6)),
    # By words only 아이들을 is shared, and no pair: 2 of them in the first, one in the second.
    ("아이들을 지켜 주세요", "아이들을 지켜주십시오", "word", (1, 3, 2), (0, 2, 1), (1, 3, 2), (1, 3, 2)),
    # 국민/청원/,/OK/!/!!/ᄏᄏ and 국민/청원/ok: case and punctuation count in morphemes.
    ("국민청원, OK!!! ㅋㅋ", "국민 청원 ok", "morpheme", (2, 7, 3), (1, 6, 2), (2, 7, 3), (2, 7, 3)),
    # Dacon's clean-up leaves 국민/청원/ok of both.
    ("국민청원, OK!!! ㅋㅋ", "국민 청원 ok", "dacon", (3, 3, 3), (2, 2, 2), (3, 3, 3), (3, 3, 3)),
    # Four times the same word matches one only.
    ("국민 국민 국민 국민", "국민 청원", "word", (1, 4, 2), (0, 3, 1), (1, 4, 2), (1, 4, 2)),
    # Twice on both sides counts twice; pairs 국민-국민 and 국민-청원 against 국민-청원 and 청원-국민.
    ("국민 국민 청원", "국민 청원 국민", "word", (3, 3, 3), (1, 2, 2), (2, 3, 3), (2, 3, 3)),
    # All words, no pair, and two of three in order (나 다, or 가 다).
    ("나 가 다", "가 나 다", "word", (3, 3, 3), (0, 2, 2), (2, 3, 3), (2, 3, 3)),
    # Something left out in the middle: 가-나 and 나-다 against 가-다.
    ("가나다", "가다", "character", (2, 3, 2), (0, 2, 1), (2, 3, 2), (2, 3, 2)),
    # One token alone has no pair.
    ("가", "가 나 다 라", "word", (1, 1, 4), (0, 0, 3), (1, 1, 4), (1, 1, 4)),
    # Sentences swapped: pairs 가-나 and 다-라 of 3 (나-다 and 라-가 are not shared); either half in order; by sentences all.
    ("다 라\n가 나", "가 나\n다 라", "word", (4, 4, 4), (2, 3, 3), (2, 4, 4), (4, 4, 4)),
    # Lin (2004), section 3.2: w1 w2 of the first and w1 w3 w5 of the second sentence, together four of five. Pairs: 가-나
    # only. In order: 가 나 다 마.
    ("가 나 바 사 아\n가 다 아 자 마", "가 나 다 라 마", "word", (4, 10, 5), (1, 9, 4), (4, 10, 5), (4, 10, 5)),
    # 가 is in the LCS of both of the reference's sentences, but the prediction has it once.
    ("가", "가 나\n가 다", "word", (1, 1, 4), (0, 0, 3), (1, 1, 4), (1, 1, 4)),
    # 나 가 against 가 나 has two LCSs; rouge_score's walk takes 가, which 가 다 takes too: with 나 it would be 2. Pairs: 나-가
    # stands in the reference where its sentences meet.
    ("나 가", "가 나\n가 다", "word", (2, 2, 4), (1, 1, 3), (2, 2, 4), (1, 2, 4)),
    # Blank lines are no sentences.
    ("\n가 나\n\n", "가 나", "word", (2, 2, 2), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    # Nothing in common, nothing at all.
    ("국민 청원", "정부 답변", "word", (0, 2, 2), (0, 1, 1), (0, 2, 2), (0, 2, 2)),
    ("", "", "morpheme", (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)),
]


@pytest.mark.parametrize(("prediction", "reference", "tokenization", "one", "two", "longest", "union"), BY_HAND)
def test_counts_by_hand(
    prediction: str,
    reference: str,
    tokenization: str,
    one: tuple[int, int, int],
    two: tuple[int, int, int],
    longest: tuple[int, int, int],
    union: tuple[int, int, int],
) -> None:
    overlaps = rouge.overlap_rows([prediction], [reference], tokenization, rouge.VARIANTS)
    assert list(overlaps) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for overlap, expected in zip(overlaps.values(), (one, two, longest, union), strict=True):
        assert (overlap.matches[0], overlap.predicted[0], overlap.expected[0]) == expected


def test_scores_by_hand() -> None:
    # 학교/에/갔/다 against 학교/에/간다: precision 2/4, recall 2/3, F1 2·2/(4 + 3).
    scores = rouge.score_rows(["학교에 갔다"], ["학교에 간다"])
    assert list(scores)[:3] == ["rouge1_morpheme", "rouge1_morpheme_precision", "rouge1_morpheme_recall"]
    assert len(scores) == 12
    assert scores["rouge1_morpheme"].dtype == np.float64
    assert scores["rouge1_morpheme"][0] == pytest.approx(4 / 7, abs=ROUNDING)
    assert scores["rouge1_morpheme_precision"][0] == 0.5
    assert scores["rouge1_morpheme_recall"][0] == pytest.approx(2 / 3, abs=ROUNDING)


def test_several_references_give_the_mean_and_the_best() -> None:
    """Dialogue contests average over three references; others take the best."""
    # 가 나 against 가 나 다 라 (F1 2·2/6, precision 1, recall 1/2), 가 (2·1/3, 1/2, 1) and 마 (0).
    scores = rouge.score_rows(["가 나", "가"], [["가 나 다 라", "가", "마"], ["가"]], "word", ["rouge1"])
    assert scores["rouge1_word"] == pytest.approx([(2 / 3 + 2 / 3 + 0) / 3, 1.0], abs=ROUNDING)
    assert scores["rouge1_word_precision"] == pytest.approx([(1 + 0.5 + 0) / 3, 1.0], abs=ROUNDING)
    assert scores["rouge1_word_recall"] == pytest.approx([(0.5 + 1 + 0) / 3, 1.0], abs=ROUNDING)
    # Both of the first have an F1 of 2/3: the first of equals is taken.
    assert scores["rouge1_word_best"] == pytest.approx([2 / 3, 1.0], abs=ROUNDING)
    assert scores["rouge1_word_best_precision"].tolist() == [1.0, 1.0]
    assert scores["rouge1_word_best_recall"].tolist() == [0.5, 1.0]


def test_one_reference_is_its_own_mean_and_best() -> None:
    predictions, references = ["정부는 청원에 답변했다", "ㅋㅋ", ""], ["정부가 청원에 답변했다", "안녕 ㅋㅋ", "가"]
    single = rouge.score_rows(predictions, references)
    assert not any("best" in name for name in single)
    listed = rouge.score_rows(predictions, [[reference] for reference in references], best=True)
    for name, values in single.items():
        metric, _, part = name.partition("_morpheme")
        assert listed[name].tolist() == values.tolist()
        assert listed[f"{metric}_morpheme_best{part}"].tolist() == values.tolist()


def test_f1_rows_are_the_usual_three() -> None:
    predictions, references = ["정부는 청원에 답변했다"], ["정부가 청원에 답변했다"]
    scores = rouge.f1_rows(predictions, references)
    assert list(scores) == ["rouge1_morpheme", "rouge2_morpheme", "rougeL_morpheme"]
    whole = rouge.score_rows(predictions, references)
    assert all(values.tolist() == whole[name].tolist() for name, values in scores.items())


def test_speaker_marks_alone_do_not_make_a_match() -> None:
    """rouge_score's own tokenizer gives 1.0 here."""
    scores = rouge.f1_rows(["#Person1# 오늘 날씨가 좋네요"], ["#Person1# 전혀 다른 문장입니다"])
    assert scores["rougeL_morpheme"][0] < 0.8


@pytest.mark.parametrize("tokenization", list(TOKENIZATIONS))
@pytest.mark.parametrize(
    "odd", ["", " ", "...", "\n\n", "\x00", "\ud800", "\ufffd", "\u200d", "🙂" * 5, "\u2028", "\x85"]
)
def test_odd_predictions_score_zero_and_never_raise(odd: str, tokenization: str) -> None:
    for a, b in ((odd, "국민 청원에 답한다"), ("국민 청원에 답한다", odd), (odd, "국민\n청원에 답한다")):
        assert all(values.tolist() == [0.0] for values in rouge.score_rows([a], [b], tokenization).values())


def test_no_rows_no_scores() -> None:
    scores = rouge.score_rows([], [], best=True)
    assert len(scores) == 24
    assert {values.shape for values in scores.values()} == {(0,)}
    assert {values.shape for values in rouge.f1_rows([], []).values()} == {(0,)}


def test_misuse_is_reported() -> None:
    with pytest.raises(ValueError, match="known: morpheme"):
        rouge.f1_rows(["가"], ["가"], "syllable")
    with pytest.raises(ValueError, match="model_tokenization"):
        rouge.f1_rows(["가"], ["가"], "model")
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        rouge.f1_rows(["가"], ["가", "나"])
    with pytest.raises(ValueError, match="'rouge3' is not known"):
        rouge.f1_rows(["가"], ["가"], variants=["rouge3"])
    with pytest.raises(ValueError, match="known: rouge1, rouge2, rougeL$"):
        rouge.overlap_tokens([["가"]], [["가"]], ["rougeLsum"])  # that needs sentences
    with pytest.raises(ValueError, match="row 1 has no reference"):
        rouge.score_rows(["가", "나"], [["가"], []])


def test_a_text_that_stands_twice_is_cut_once() -> None:
    """Several systems and several references repeat texts; the analyser is most of the time."""
    seen: list[str] = []

    def cut(texts: Sequence[str]) -> list[list[str]]:
        seen.extend(texts)
        return [text.split() for text in texts]

    scores = rouge.score_rows(["가 나", "가 나"], [["가", "나 다"], ["가 나", "가"]], Tokenization("spy", cut))
    assert sorted(seen) == ["가", "가 나", "나 다"]
    assert scores["rouge1_spy"] == pytest.approx([(2 / 3 + 1 / 2) / 2, (1 + 2 / 3) / 2], abs=ROUNDING)


def test_memory_bounds_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long inputs are worked off in parts; where a part ends must not show."""
    rows = [text[:300] for text in nasty.rows()]
    shifted = [[*rows[7:], *rows[:7]][row] for row in range(len(rows))]
    whole = rouge.score_rows(rows, shifted)
    monkeypatch.setattr(rouge, "CHUNK_CHARACTERS", 700)
    monkeypatch.setattr(rouge, "CHUNK_TOKENS", 300)
    parts = rouge.score_rows(rows, shifted)
    assert all(parts[name].tolist() == values.tolist() for name, values in whole.items())
    monkeypatch.setattr(rouge, "CHUNK_ROWS", 1)
    single = rouge.score_rows(rows, shifted)
    assert all(single[name].tolist() == values.tolist() for name, values in whole.items())


@pytest.mark.parametrize("tokenization", list(TOKENIZATIONS))
def test_nasty_rows_get_a_score_each(tokenization: str) -> None:
    rows = nasty.rows()
    assert len(rows) == nasty.COUNT == 200
    same = rouge.score_rows(rows, rows, tokenization)
    other = rouge.score_rows(rows, rows[1:] + rows[:1], tokenization)
    for values in (*same.values(), *other.values()):
        assert values.shape == (200,)
        assert values.min() >= 0.0
        assert values.max() <= 1.0
    assert set(same[f"rouge1_{tokenization}"].tolist()) == {0.0, 1.0}
    assert same[f"rougeL_{tokenization}"].tolist() == same[f"rouge1_{tokenization}"].tolist()


texts = st.text(alphabet=st.sampled_from("가나다ㅋ국민은 를\nab1.!🙂\x00\ud800"), max_size=30) | st.text(max_size=20)
names = st.sampled_from(list(TOKENIZATIONS))


@settings(max_examples=150, deadline=None)
@given(texts, texts, names)
def test_scores_are_bounded_symmetric_and_one_for_the_same_text(a: str, b: str, tokenization: str) -> None:
    forth, back = (rouge.score_rows(*pair, tokenization) for pair in (([a], [b]), ([b], [a])))
    for name, values in forth.items():
        assert 0.0 <= values[0] <= 1.0
        if "Lsum" not in name:  # its LCSs are chosen on the reference's side: it is not symmetric, nor rouge_score's
            assert values[0] == back[_mirrored(name)][0]
    tokens = TOKENIZATIONS[tokenization](a)
    same = rouge.score_rows([a], [a], tokenization)
    assert same[f"rouge1_{tokenization}"][0] == (1.0 if tokens else 0.0)
    assert same[f"rouge2_{tokenization}"][0] == (1.0 if len(tokens) > 1 else 0.0)
    assert same[f"rougeL_{tokenization}"][0] == (1.0 if tokens else 0.0)


def _mirrored(name: str) -> str:
    """The score that precision becomes when the two texts change places, and recall; F1 stays."""
    metric, _, part = name.rpartition("_")
    return f"{metric}_{({'precision': 'recall', 'recall': 'precision'}).get(part, part)}"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=8), st.randoms(), names)
def test_rows_do_not_know_each_other(rows: list[tuple[str, list[str]]], source: object, tokenization: str) -> None:
    """The order of rows, and what else is scored in the same call, change no row's score; the best is no less than the
    mean."""
    order = list(range(len(rows)))
    source.shuffle(order)  # type: ignore[attr-defined]

    def scored(chosen: Sequence[int]) -> dict[str, np.ndarray]:
        return rouge.score_rows([rows[i][0] for i in chosen], [rows[i][1] for i in chosen], tokenization, best=True)

    straight, shuffled = scored(range(len(rows))), scored(order)
    for name, values in straight.items():
        assert values[order].tolist() == pytest.approx(shuffled[name].tolist(), abs=ROUNDING)
        assert values[0] == pytest.approx(scored([0])[name][0], abs=ROUNDING)
    for variant in rouge.VARIANTS:
        mean, best = straight[f"{variant}_{tokenization}"], straight[f"{variant}_{tokenization}_best"]
        assert (best >= mean - ROUNDING).all()
