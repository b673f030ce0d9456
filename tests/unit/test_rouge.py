"""ROUGE on Korean: a wrong score here would crown the wrong model."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from components.shared import rouge

PETITIONS = Path(__file__).parents[2] / "pipelines" / "sample_data" / "petitions.tsv.gz"
TOLERANCE = 1e-9
"""Both compute 2PR/(P+R) of the same whole numbers in float64, in another order: the difference is rounding alone."""


class SplitTokenizer:
    """Lets rouge_score see exactly our tokens."""

    def __init__(self, tokenization: str):
        self.tokenization = tokenization

    def tokenize(self, text: str) -> list[str]:
        return rouge.TOKENIZATIONS[self.tokenization](rouge.normalise(text))


def theirs(predictions: list[str], references: list[str], tokenization: str) -> dict[str, np.ndarray]:
    scorer = rouge_scorer.RougeScorer(list(rouge.VARIANTS), tokenizer=SplitTokenizer(tokenization))
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)]
    return {f"{v}_{tokenization}": np.array([row[v].fmeasure for row in rows]) for v in rouge.VARIANTS}


def petitions(rows: int) -> list[dict[str, str]]:
    with gzip.open(PETITIONS, "rt", encoding="utf-8", newline="") as stream:
        return [row for row, _ in zip(csv.DictReader(stream, delimiter="\t"), range(rows), strict=False)]


@pytest.mark.parametrize("tokenization", list(rouge.TOKENIZATIONS))
def test_real_korean_pairs_score_as_rouge_score_does_on_the_same_tokens(tokenization: str) -> None:
    rows = petitions(60)
    references = [row["summary"] for row in rows]
    predictions = [row["news"][:150] for row in rows]
    ours = rouge.f1_rows(predictions, references, tokenization)
    expected = theirs(predictions, references, tokenization)
    assert list(ours) == list(expected)
    for name, values in ours.items():
        assert values.dtype == np.float64
        assert values == pytest.approx(expected[name], abs=TOLERANCE)
    assert 0.05 < ours[f"rouge1_{tokenization}"].mean() < 0.9


def test_random_texts_score_as_rouge_score_does() -> None:
    source = random.Random(3)
    words = ["정부", "청원", "국민", "은", "합니다", "a", "1", "."]
    texts = [" ".join(source.choices(words, k=source.randrange(40))) for _ in range(200)]
    ours = rouge.f1_rows(texts[:100], texts[100:], "word")
    for name, values in theirs(texts[:100], texts[100:], "word").items():
        assert ours[name] == pytest.approx(values, abs=TOLERANCE)


def test_scores_by_hand() -> None:
    # 정부/는/청원/에/답변/했/다 against 정부/가/청원/에/답변/했/다: 6 of 7 shared, 4 pairs of 6.
    prediction, reference = "정부는 청원에 답변했다", "정부가 청원에 답변했다"
    assert rouge.morphemes(prediction) == ["정부", "는", "청원", "에", "답변", "했", "다"]
    ours = rouge.f1_rows([prediction], [reference])
    assert ours["rouge1_morpheme"][0] == pytest.approx(6 / 7)
    assert ours["rouge2_morpheme"][0] == pytest.approx(4 / 6)
    assert ours["rougeL_morpheme"][0] == pytest.approx(6 / 7)
    # By words: 2 of 3 shared, one pair of 2. By characters: 정부는청원에답변했다 (10), 9 shared, 7 pairs of 9.
    assert rouge.f1_rows([prediction], [reference], "word")["rouge1_word"][0] == pytest.approx(2 / 3)
    assert rouge.f1_rows([prediction], [reference], "word")["rouge2_word"][0] == pytest.approx(1 / 2)
    characters = rouge.f1_rows([prediction], [reference], "character")
    assert characters["rouge1_character"][0] == pytest.approx(9 / 10)
    assert characters["rouge2_character"][0] == pytest.approx(7 / 9)


def test_repeating_a_word_earns_nothing_and_order_counts_in_rouge_l() -> None:
    clipped = rouge.f1_rows(["국민 국민 국민 국민"], ["국민 청원"], "word")
    assert clipped["rouge1_word"][0] == pytest.approx(2 * 1 / (4 + 2))
    swapped = rouge.f1_rows(["나 가 다"], ["가 나 다"], "word")
    assert swapped["rouge1_word"][0] == 1.0
    assert swapped["rougeL_word"][0] == pytest.approx(2 / 3)
    assert swapped["rouge2_word"][0] == 0.0


def test_precision_and_recall_are_told_apart() -> None:
    overlap = rouge.overlap_rows(["가"], ["가 나 다 라"], "word")["rouge1"]
    assert overlap.precision.tolist() == [1.0]
    assert overlap.recall.tolist() == [0.25]
    assert overlap.f1.tolist() == pytest.approx([0.4])


def test_speaker_marks_alone_do_not_make_a_match() -> None:
    """rouge_score's own tokenizer gives 1.0 here."""
    scores = rouge.f1_rows(["#Person1# 오늘 날씨가 좋네요"], ["#Person1# 전혀 다른 문장입니다"])
    assert scores["rougeL_morpheme"][0] < 0.8


def test_compatibility_letters_equal_what_a_tokenizer_decodes() -> None:
    decoded = "ㅋㅋ 좋아요 2㎏".translate({0x314B: 0x110F})  # KoBART's NFKC turns ㅋ U+314B into ᄏ U+110F
    for tokenization in rouge.TOKENIZATIONS:
        assert rouge.f1_rows([decoded], ["ㅋㅋ 좋아요 2kg"], tokenization)[f"rouge1_{tokenization}"][0] == 1.0


@pytest.mark.parametrize("tokenization", list(rouge.TOKENIZATIONS))
@pytest.mark.parametrize("odd", ["", " ", "...", "\n\n", "\x00", "\ud800", "\ufffd", "‍", "🙂" * 5])
def test_odd_predictions_score_zero_and_never_raise(odd: str, tokenization: str) -> None:
    for a, b in ((odd, "국민 청원에 답한다"), ("국민 청원에 답한다", odd)):
        assert all(values.tolist() == [0.0] for values in rouge.f1_rows([a], [b], tokenization).values())


def test_text_behind_a_nul_or_a_lone_surrogate_is_not_lost() -> None:
    for odd in ("국민\x00청원", "국민\ud800청원", "국민\n청원"):
        assert rouge.f1_rows([odd], ["국민 청원"])["rouge1_morpheme"][0] == 1.0


def test_long_texts_are_cut_at_spaces_and_lose_nothing() -> None:
    long = "국민 청원에 답하라 " * 2_000
    assert "".join(rouge._pieces(long, 1000)) == long
    assert rouge.morphemes(long) == rouge.morphemes("국민 청원에 답하라") * 2_000
    assert "".join(rouge.morphemes("가" * 5_000)) == "가" * 5_000


def test_no_rows_no_scores() -> None:
    assert {name: values.shape for name, values in rouge.f1_rows([], []).items()} == {
        "rouge1_morpheme": (0,),
        "rouge2_morpheme": (0,),
        "rougeL_morpheme": (0,),
    }


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="known: morpheme"):
        rouge.f1_rows(["가"], ["가"], "syllable")
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        rouge.f1_rows(["가"], ["가", "나"])


texts = st.text(alphabet=st.sampled_from("가나다ㅋ국민은 를\nab1.!🙂\x00\ud800"), max_size=30) | st.text(max_size=20)


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.sampled_from(list(rouge.TOKENIZATIONS)))
def test_scores_are_bounded_symmetric_and_one_for_the_same_text(a: str, b: str, tokenization: str) -> None:
    forth, back = rouge.f1_rows([a], [b], tokenization), rouge.f1_rows([b], [a], tokenization)
    for name, values in forth.items():
        assert 0.0 <= values[0] <= 1.0
        assert values[0] == back[name][0]
    tokens = rouge.TOKENIZATIONS[tokenization](rouge.normalise(a))
    same = rouge.f1_rows([a], [a], tokenization)
    assert same[f"rouge1_{tokenization}"][0] == (1.0 if tokens else 0.0)
    assert same[f"rouge2_{tokenization}"][0] == (1.0 if len(tokens) > 1 else 0.0)
    assert same[f"rougeL_{tokenization}"][0] == (1.0 if tokens else 0.0)
