"""How texts are cut: two people who name the same tokenization must mean the same tokens."""

from __future__ import annotations

import csv
import gzip
import logging
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from mecab import MeCab
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hanflow import system as machine
from hanflow.errors import UserError
from hanflow.loading.pretrained import load_tokenizer
from hanflow.metrics import rouge
from hanflow.text import morphemes
from hanflow.text.scoring_tokens import NAMES, TOKENIZATIONS, model_tokenization
from hanflow.text.scoring_tokens import normalise as normalise_lines
from tests.support import nasty

PETITIONS = Path(__file__).parents[2] / "pipelines" / "sample_data" / "petitions.tsv.gz"


def normalise(text: str) -> str:
    """One line, as `morphemes` takes it."""
    return normalise_lines(text).replace("\n", " ")


def petitions(rows: int) -> list[str]:
    with gzip.open(PETITIONS, "rt", encoding="utf-8", newline="") as stream:
        texts = [row["news"] for row, _ in zip(csv.DictReader(stream, delimiter="\t"), range(rows), strict=False)]
    return [normalise(text) for text in texts]


def test_names() -> None:
    assert NAMES == ("morpheme", "character", "word", "dacon", "model")


def test_morphemes_are_mecab_s() -> None:
    texts = petitions(150)
    mecab = MeCab()
    assert list(morphemes.morphemes(texts)) == [mecab.morphs(text) for text in texts]


def test_odd_texts_give_mecab_s_morphemes_too() -> None:
    """Whatever white space NFKC leaves, no morpheme falls apart at it."""
    texts = [normalise(text)[:2000] for text in nasty.rows()]
    mecab = MeCab()
    assert list(morphemes.morphemes(texts)) == [mecab.morphs(text) for text in texts]


def test_long_texts_are_cut_at_spaces_and_lose_nothing() -> None:
    long = "국민 청원에 답하라 " * 4_000
    assert "".join(morphemes.pieces(long, 1000)) == long
    assert all(piece.endswith(" ") and len(piece) <= 1000 for piece in morphemes.pieces(long, 1000))
    (cut,) = morphemes.morphemes([long])
    assert cut == ["국민", "청원", "에", "답", "하", "라"] * 4_000
    (cut,) = morphemes.morphemes(["가" * 25_000])
    assert "".join(cut) == "가" * 25_000


def test_helpers_give_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Two processes, unequal texts, empty ones and such without a morpheme."""
    texts = ["", *petitions(20), " ", "🙂", "가" * 300, *(normalise(text)[:500] for text in nasty.rows()), ""]
    alone = list(morphemes.morphemes(texts, helpers=1))
    with caplog.at_level(logging.WARNING):
        assert list(morphemes.morphemes(texts, helpers=2)) == alone
        assert list(morphemes.morphemes(texts, helpers=len(texts) + 5)) == alone
    assert caplog.records == []


def test_much_text_is_shared_among_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(morphemes, "HELPER", 1000)
    by_helpers = morphemes._by_helpers

    def counted(texts: list[str], helpers: int) -> list[str] | None:
        seen.append(helpers)
        return by_helpers(texts, helpers)

    monkeypatch.setattr(morphemes, "_by_helpers", counted)
    few, many = ["국민 청원"] * 10, ["국민 청원에 답하라"] * 500
    assert list(morphemes.morphemes(few)) == [["국민", "청원"]] * 10
    assert seen == []
    assert list(morphemes.morphemes(many)) == [["국민", "청원", "에", "답", "하", "라"]] * 500
    assert seen == [machine.available_cpus()] if machine.available_cpus() > 1 else seen == []


def test_without_helpers_the_work_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        assert list(morphemes.morphemes(["국민 청원", "정부 답변"], helpers=2)) == [["국민", "청원"], ["정부", "답변"]]
    assert "analysed by one process" in caplog.text
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert list(morphemes.morphemes(["국민 청원", "정부 답변"], helpers=2)) == [["국민", "청원"], ["정부", "답변"]]


def test_a_helper_imports_mecab_alone() -> None:
    """It starts for every large chunk: numpy or torch would cost more than it saves."""
    code = (
        f"import runpy, sys; runpy.run_path({morphemes.__file__!r}, run_name='__main__'); "
        "print([m for m in ('numpy', 'torch', 'transformers', 'components') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], input="국민 청원".encode(), capture_output=True, check=True
    )
    assert done.stdout.decode() == "국민 청원 []\n"


def test_characters_and_words() -> None:
    assert list(TOKENIZATIONS["character"]("국민 청원\tㅋㅋ\n2㎏")) == [
        "국",
        "민",
        "청",
        "원",
        "ᄏ",
        "ᄏ",
        "2",
        "k",
        "g",
    ]
    assert list(TOKENIZATIONS["word"](" 국민  청원에\n답하라. ")) == ["국민", "청원에", "답하라."]


def test_compatibility_letters_equal_what_a_tokenizer_decodes() -> None:
    decoded = "ㅋㅋ 좋아요 2㎏".translate({0x314B: 0x110F})  # KoBART's NFKC turns ㅋ U+314B into ᄏ U+110F
    for tokenization in TOKENIZATIONS.keys() - {"dacon"}:  # which takes raw characters
        assert rouge.f1_rows([decoded], ["ㅋㅋ 좋아요 2kg"], tokenization)[f"rouge1_{tokenization}"][0] == 1.0


def test_text_behind_a_nul_or_a_lone_surrogate_is_not_lost() -> None:
    for odd in ("국민\x00청원", "국민\ud800청원", "국민\n청원", "국민\u2028청원", "국민\x85청원"):
        for tokenization in TOKENIZATIONS:
            assert rouge.f1_rows([odd], ["국민 청원"], tokenization)[f"rouge1_{tokenization}"][0] == 1.0


def test_dacon_drops_all_but_letters_digits_and_syllables() -> None:
    dacon = TOKENIZATIONS["dacon"]
    assert dacon.clean("국민-청원, 100%!\n(ㅋㅋ) 漢字 É OK🙂") == "국민 청원  100  \n          ok "
    assert dacon("국민청원, OK!!! ㅋㅋㅋ 🙂 漢字") == ["국민", "청원", "ok"]
    assert dacon("OK") == dacon("ok!") == ["ok"]
    assert dacon(unicodedata.normalize("NFD", "국민 청원")) == [], "the contest's scorer knows no decomposed Hangul"
    scores = rouge.f1_rows(["㈜ a b c"], ["주 a b c"], "dacon")
    assert scores["rouge1_dacon"][0] == pytest.approx(6 / 7), "nor does it know ㈜"
    assert dacon("!?… ㅋㅋ ㅠㅠ 🙂") == []


def test_dacon_reads_a_thousand_words() -> None:
    """Counted by white space before the clean-up, over all lines together; a later word cannot earn a point."""
    dacon = TOKENIZATIONS["dacon"]
    long = "가 " * 999 + "국민 청원"
    assert dacon(long) == ["가"] * 999 + ["국민"]
    assert dacon("! " * 999 + "국민 청원") == ["국민"]
    lines = "가\n" * 999 + "국민\n청원"
    assert dacon.clean(lines).split("\n")[-3:] == ["가", "국민", ""]
    assert rouge.overlap_rows([lines], ["청원"], "dacon", rouge.VARIANTS)["rougeLsum"].matches.tolist() == [0]
    assert rouge.overlap_rows([lines], ["국민"], "dacon", rouge.VARIANTS)["rougeLsum"].matches.tolist() == [1]


@pytest.fixture(scope="module")
def core() -> Tokenizer:
    """A Unigram tokenizer in KoBART's manner: NFKC, ▁ for spaces, an unknown token, and a </s> that is added."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁국민", -1.0), ("▁청원", -1.0), ("에", -1.0), ("č", -2.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=0))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    core.enable_truncation(3)
    core.enable_padding(length=8)
    return core


def test_a_model_s_own_pieces_without_ends_truncation_or_padding(core: Tokenizer) -> None:
    cut = model_tokenization(core)
    assert cut.name == "model"
    assert list(cut("국민 청원에 국민 청원에")) == [3, 4, 5, 3, 4, 5]
    assert len(core.encode("국민 청원에 국민 청원에").ids) == 8  # the tokenizer itself is left as it was
    wrapped = model_tokenization(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))
    assert list(wrapped("국민 청원에")) == [3, 4, 5]
    assert rouge.f1_rows(["국민 청원에"], ["국민 청원"], cut)["rouge1_model"].tolist() == [pytest.approx(4 / 5)]


def test_unknown_pieces_are_equal_only_to_themselves(core: Tokenizer) -> None:
    """As one token, <unk>, every emoji would match every other."""
    cut = model_tokenization(core)
    assert rouge.f1_rows(["🙂", "漢字", "漢字"], ["🏴", "русский", "漢字"], cut)["rouge1_model"].tolist() == [
        0.0,
        0.0,
        1.0,
    ]


def test_a_bare_space_is_no_piece(core: Tokenizer) -> None:
    cut = model_tokenization(core)
    assert list(cut("  ")) == list(cut("\n")) == list(cut("")) == []
    assert list(cut("č")) == [6]  # a letter here, a carriage return to byte-level tokenizers
    assert rouge.f1_rows(["🙂 🙂"], ["漢 국민"], cut)["rouge1_model"].tolist() == [0.0]


def test_any_function_can_be_the_model_s(core: Tokenizer, tmp_path: Path) -> None:
    assert list(model_tokenization(str.split)("국민 청원")) == ["국민", "청원"]
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(tmp_path)
    assert list(model_tokenization(load_tokenizer(tmp_path))("국민 청원에")) == [3, 4, 5]
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "missing")


def test_nasty_rows_pass_a_model_s_tokenizer(core: Tokenizer) -> None:
    rows = [text[:2000] for text in nasty.rows()]
    scores = rouge.score_rows(rows, rows[1:] + rows[:1], model_tokenization(core))
    assert all(values.shape == (200,) and values.min() >= 0 and values.max() <= 1 for values in scores.values())
