"""A text comes back as it went in: decode(encode(x)) = x up to the tokenizer's normalizer, and cells of tables."""

from __future__ import annotations

import csv
import io
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hanflow.config import TokenizeConfig
from hanflow.data.delimited import csv_writer, safe_cell, unguarded
from hanflow.text.encoding import continuation, plain_ids, plain_text
from hanflow.text.vocabulary import SPECIAL, add_tokens, train_tokenizer
from tests.support.fuzz import cases
from tests.support.nasty import ODD

ADDED = ["#Person1#", "#Person2#", "#PhoneNumber#", "<평점>"]
LINES = [
    "#Person1#은 #Person2#에게 표를 샀는지 물었다.",
    "#Person1#: 표를 샀나요? #Person2#: 네.",
    "#Person2#: #PhoneNumber#로 걸어 주세요.",
    "#Person2#가 #PhoneNumber#를 알려 주었다.",
    "<s>는 줄을 긋고 </s>로 끝낸다 <pad><unk> <mask>",
]


def like_kobart() -> PreTrainedTokenizerFast:
    """BPE with a space put before each piece of a text, as KoBART's, over the characters of LINES."""
    vocabulary = {
        token: place
        for place, token in enumerate([*SPECIAL, *sorted({c for line in LINES for c in line + "▁"} - {" "})])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    roles = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    add_tokens(wrapped, ADDED)
    return wrapped


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    settings = {"special_tokens": ADDED, "vocabulary_size": 400}
    byte = train_tokenizer(LINES * 9, TokenizeConfig(**settings))
    characters = "".join({c for line in LINES for c in line} - {" "})
    unigram = train_tokenizer([*LINES * 9, characters], TokenizeConfig(algorithm="unigram", **settings))
    return {"byte_bpe": byte, "unigram": unigram, "kobart": like_kobart()}


def back(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    return plain_text(plain_ids([text], tokenizer)[0], tokenizer)


@pytest.mark.parametrize("name", ["byte_bpe", "unigram", "kobart"])
def test_added_tokens_and_names_of_roles_come_back(name: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers[name]
    roles = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    for text in LINES:
        ids = plain_ids([text], tokenizer)[0]
        assert plain_text(ids, tokenizer) == text
        assert not roles & set(ids), "an id with a role comes from us alone"
        for token in ADDED:
            assert ids.count(tokenizer.convert_tokens_to_ids(token)) == text.count(token), "one id each"
    assert plain_ids(LINES, tokenizer) == [plain_ids([text], tokenizer)[0] for text in LINES]


PIECES = st.sampled_from([*ADDED, *SPECIAL, " ", "  ", "은", "에게", "표", ".", "#", "<", "s", ">", "물었다", "를"])


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["byte_bpe", "unigram", "kobart"])
def test_mixtures_come_back(name: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers[name]
    roles = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}

    @settings(max_examples=cases(100, 5000), deadline=None)
    @given(st.lists(PIECES, max_size=12))
    def holds(pieces: list[str]) -> None:
        text = "".join(pieces)
        if name == "kobart":  # a space before the whole text is part of how it was trained
            text = text.lstrip(" ")
        assert back(text, tokenizer) == text
        assert not roles & set(plain_ids([text], tokenizer)[0])

    holds()


@pytest.mark.fuzz
def test_every_block_of_unicode_comes_back_from_bytes(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers["byte_bpe"]

    @settings(max_examples=cases(100, 10_000), deadline=None)
    @given(st.text(max_size=60))
    def holds(text: str) -> None:
        assert back(text, tokenizer) == text

    holds()
    for text in ODD:
        if len(text) < 1000 and not re.search("[\ud800-\udfff]", text):
            assert back(text, tokenizer) == text


def test_no_half_characters(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    """A limit may fall within a character: of three bytes here."""
    tokenizer = tokenizers["byte_bpe"]
    ids = plain_ids(["뷁쀍"], tokenizer)[0]
    assert len(ids) > 2
    texts = [plain_text(ids[:length], tokenizer) for length in range(len(ids) + 1)]
    assert set(texts) == {"", "뷁", "뷁쀍"}
    assert back("가\ufffd", tokenizer) == "가\ufffd", "a character of the text itself stays"


@pytest.mark.parametrize("name", ["byte_bpe", "unigram", "kobart"])
def test_a_continuation_keeps_its_space(name: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers[name]
    prompt, whole = (plain_ids([text], tokenizer)[0] for text in ("#Person1#은", "#Person1#은 물었다."))
    assert whole[: len(prompt)] == prompt
    assert continuation(prompt, whole[len(prompt) :], tokenizer) == " 물었다."


GUARDED = {
    "=1": "'=1",
    "'=1": "''=1",
    "''=1": "'''=1",
    "-5도": "'-5도",
    "'-5도": "''-5도",
    "@여기": "'@여기",
    "'가": "'가",
    "가": "가",
    " =1": "' =1",
    "\ufeff=1": "'\ufeff=1",
    "\u00a0\u200b+1": "'\u00a0\u200b+1",
    "＝1": "'＝1",
    "\n=1": "'\n=1",
    "\t가": "'\t가",
    "가=1": "가=1",
}


def test_no_cell_is_run_and_each_comes_back() -> None:
    assert {text: safe_cell(text) for text in GUARDED} == GUARDED
    assert [unguarded(cell) for cell in GUARDED.values()] == list(GUARDED)


@pytest.mark.fuzz
def test_any_text_comes_back_from_a_cell() -> None:
    odd = st.text(st.sampled_from("'=+-@ \t\r\n\ufeff\u200b\u00a0＝＋－＠가a0\"|,"), max_size=8)

    @settings(max_examples=cases(200, 20_000), deadline=None)
    @given(odd | st.text(max_size=20))
    def holds(text: str) -> None:
        cell = safe_cell(text)
        assert unguarded(cell) == text
        shown = [c for c in cell if unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp")]
        assert not shown or shown[0] not in "=+-@＝＋－＠"

    holds()
    stream = io.StringIO()
    csv_writer(stream).writerow([safe_cell(text) for text in GUARDED])
    assert [unguarded(cell) for cell in next(csv.reader([stream.getvalue()]))][:9] == list(GUARDED)[:9]
