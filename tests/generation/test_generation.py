"""Generation: every row gets its own text, and no token that belongs to the text is lost."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from hanflow.config import SearchConfig
from hanflow.data.batches import batches
from hanflow.errors import UserError
from hanflow.generation import Generator, generation_config
from hanflow.generation.options import even_batches
from hanflow.generation.transformers_engine import TransformersEngine

TEXTS = ["국민 청원에 답해 주십시오", "어린이집 교사의 처우를 개선해 주세요 ㅋㅋ", "#Person1#: 반대합니다"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with KoBART's special tokens, an emoji among them."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>", "😀", "#Person1#"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<usr>", "<sys>", "😀", "#Person1#"],
    )


def bart(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    values = {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        **sizes,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 40,
        "init_std": 1.0,  # outputs that depend on the input; with BART's 0.02 every row would say the same
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
        **settings,
    }
    return BartForConditionalGeneration(BartConfig(**values)).eval()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> BartForConditionalGeneration:
    return bart(tokenizer)


def encoded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    return [
        np.array([*tokenizer(text, add_special_tokens=False)["input_ids"][:39], tokenizer.eos_token_id], dtype=np.int32)
        for text in texts
    ]


def generate(
    model: BartForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    sources: list[np.ndarray],
    options: SearchConfig,
) -> list[str]:
    return Generator(TransformersEngine(model), tokenizer).generate(sources, options)


class Parrot(BartForConditionalGeneration):
    """Says given tokens, one a step, whatever it reads: lets a test choose what is generated."""

    say: tuple[int, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        past = kwargs["past_key_values"].get_seq_length() - 1 if kwargs.get("past_key_values") is not None else 0
        output.logits = torch.full_like(output.logits, -50.0)
        output.logits[..., self.say[min(past, len(self.say) - 1)]] = 0.0
        return output


def said(tokenizer: PreTrainedTokenizerFast, tokens: list[str], remove: tuple[str, ...] = ()) -> str:
    parrot = Parrot(bart(tokenizer).config).eval()
    ids = tokenizer.convert_tokens_to_ids([*tokens, "</s>", "국"])
    parrot.say = tuple(ids)
    options = SearchConfig(beams=1, max_new_tokens=20, remove_tokens=list(remove))
    return generate(parrot, tokenizer, encoded(tokenizer, TEXTS[:1]), options)[0]


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.tokenize(text, add_special_tokens=False)


@pytest.mark.parametrize("beams", [1, 3])
def test_batching_and_order_do_not_change_what_a_row_gets(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, beams: int
) -> None:
    sources = encoded(tokenizer, [*TEXTS, "짧다", TEXTS[0] + TEXTS[1], "국민"])
    options = SearchConfig(beams=beams, max_new_tokens=8, batch_tokens=10_000)
    together = generate(model, tokenizer, sources, options)
    alone = [generate(model, tokenizer, [source], options)[0] for source in sources]
    assert together == alone
    assert generate(model, tokenizer, sources[::-1], options)[::-1] == together
    small = SearchConfig(beams=beams, max_new_tokens=8, batch_tokens=64)
    assert generate(model, tokenizer, sources, small) == together
    assert len(set(together)) > 1


def test_it_is_plain_transformers_generation(tokenizer: PreTrainedTokenizerFast) -> None:
    model = bart(tokenizer, forced_eos_token_id=None)  # BartConfig's hidden default is 2, here <usr>
    source = encoded(tokenizer, TEXTS)[1]
    options = SearchConfig(beams=3, max_new_tokens=10, no_repeat_ngram=2, length_penalty=0.8)
    theirs = model.generate(
        input_ids=torch.from_numpy(source.astype(np.int64))[None],
        num_beams=3,
        max_new_tokens=10,
        no_repeat_ngram_size=2,
        length_penalty=0.8,
        early_stopping=True,
        renormalize_logits=True,
    )[0].tolist()[1:]
    end = theirs.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in theirs else None
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    expected = tokenizer.decode([token for token in theirs[:end] if token not in special]).rstrip("\ufffd").strip()
    assert generate(model, tokenizer, [source], options) == [expected]


def test_nothing_hides_in_the_models_own_generation_config(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, tricky = bart(tokenizer), bart(tokenizer)
    own = tricky.generation_config
    own.update(max_length=5, no_repeat_ngram_size=1, num_beams=3, repetition_penalty=5.0, forced_bos_token_id=9)
    options = SearchConfig(beams=1, max_new_tokens=15)
    sources = encoded(tokenizer, TEXTS)
    assert generate(tricky, tokenizer, sources, options) == generate(plain, tokenizer, sources, options)
    assert tricky.generation_config is own
    assert own.max_length == 5


def test_emojis_speakers_and_unknown_tokens_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    words = pieces(tokenizer, " 국민")
    assert said(tokenizer, ["#Person1#", *words, "😀"]) == "#Person1# 국민😀"
    assert said(tokenizer, [*words, "<unk>"]) == "국민<unk>"


def test_begin_padding_and_listed_tokens_go_and_the_text_ends_at_the_end_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    words = pieces(tokenizer, " 국민")
    assert said(tokenizer, ["<s>", "<usr>", *words, "<pad>"], remove=("<usr>",)) == "국민"
    assert said(tokenizer, ["<usr>", *words]) == "<usr> 국민"


def test_an_unknown_token_to_remove_is_no_failure(tokenizer: PreTrainedTokenizerFast) -> None:
    assert said(tokenizer, pieces(tokenizer, "국민"), remove=("<nonsense>",)) == "국민"


def test_no_sources_no_texts(model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    assert generate(model, tokenizer, [], SearchConfig()) == []


def test_the_models_mode_is_put_back(tokenizer: PreTrainedTokenizerFast) -> None:
    model = bart(tokenizer, dropout=0.5).train()
    sources = encoded(tokenizer, TEXTS)
    options = SearchConfig(beams=1, max_new_tokens=6)
    assert generate(model, tokenizer, sources, options) == generate(model, tokenizer, sources, options)  # no dropout
    assert model.training


def test_longer_than_the_models_positions(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    assert generation_config(model, SearchConfig(max_new_tokens=100)).max_new_tokens == 40
    tall = SearchConfig(beams=1, max_new_tokens=100, min_new_tokens=40, batch_tokens=64)
    assert len(generate(model, tokenizer, encoded(tokenizer, TEXTS[:1]), tall)) == 1
    with pytest.raises(UserError, match="41 tokens, the model only 40 positions; set tokenize"):
        generate(model, tokenizer, [np.zeros(41, dtype=np.int32)], SearchConfig())
    with pytest.raises(UserError, match="min_new_tokens=50"):
        generation_config(model, SearchConfig(min_new_tokens=50, max_new_tokens=30))


def test_no_warning_reaches_the_user(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    for beams in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(model, tokenizer, encoded(tokenizer, TEXTS), SearchConfig(beams=beams, max_new_tokens=6))
    assert capfd.readouterr().err == ""


@given(st.lists(st.integers(0, 512), max_size=60), st.integers(16, 4096), st.integers(1, 5), st.integers(0, 99))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, beams: int, more: int) -> None:
    made = list(batches(lengths, budget, copies=beams, more=more))
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * (max(lengths[row] for row in batch) + more) * beams <= budget


@given(st.lists(st.integers(1, 512), max_size=60), st.integers(16, 4096), st.integers(1, 5), st.integers(1, 4))
def test_few_batches_come_in_rounds_of_all_workers(lengths: list[int], budget: int, beams: int, workers: int) -> None:
    even = even_batches(lengths, budget, beams, workers)
    assert sorted(row for batch in even for row in batch) == list(range(len(lengths)))
    for batch in even:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) * beams <= budget
    for start in range(0, len(even), workers):  # nobody of a round has more than one row more than the others
        sizes = [len(batch) for batch in even[start : start + workers]]
        assert max(sizes) - min(sizes) <= 1 and (len(sizes) == workers or set(sizes) == {1})


def test_like_rows_are_shared_out_evenly() -> None:
    assert [len(batch) for batch in even_batches([100] * 24, 8 * 100 * 4, 4, 2)] == [6, 6, 6, 6]
    assert [len(batch) for batch in even_batches([100] * 9, 8 * 100 * 4, 4, 2)] == [5, 4]
