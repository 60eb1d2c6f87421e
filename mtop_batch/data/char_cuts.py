"""Where a text may be cut before it is tokenised, so that the tokens before the cut stay the same.

A tokenizer first splits a text into pieces (its pre-tokeniser) and then tokenises each piece by itself. A cut between
two pieces therefore changes no token before it. All pre-tokenisers known here end a piece before a space (U+0020) that
follows a visible character; those of BERT and of byte-level BPE also end one before CJK punctuation that follows a
letter, and BERT's normaliser makes a piece of every ideograph. Python strings are cut, so the character before the cut
is restricted to those that no Unicode normalisation turns into white space or punctuation where that would matter.

Anything unknown (a custom or regular-expression pre-tokeniser, added tokens with a space inside ...) has no safe cuts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_VISIBLE_THEN_SPACE = r"[\w!-~](?= )"
_LETTER_THEN_CJK_MARK = r"[0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3](?=[。，、！？])"
_VISIBLE_THEN_IDEOGRAPH = r"[\w!-~](?=[\u4e00-\u9fff])"

_SPLIT_AT_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace"}
_SPLIT_FURTHER = {"Digits", "Punctuation"}
_LOCAL_NORMALIZERS = {
    "BertNormalizer",
    "ByteLevel",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Strip",
    "StripAccents",
}
_LOCAL_REPLACED_REGEXES = {" {2,}", r"\s+"}
_SPACE_INSIDE = re.compile(r"\S\s")


def safe_cuts(backend: Any) -> re.Pattern[str] | None:
    """A pattern that ends at the last safe cut of a text, for `find_cut`; None if none is known to be safe.

    Args:
        backend: A `tokenizers.Tokenizer`.
    """
    try:
        splitters = _members(backend.pre_tokenizer, "pretokenizers")
        normalizers = _members(backend.normalizer, "normalizers")
    except Exception:  # components written in Python cannot be inspected, and say so with a bare Exception
        return None
    if not _splits_at_spaces(splitters) or not all(_is_local(normalizer) for normalizer in normalizers):
        return None
    if any(_SPACE_INSIDE.search(token.content) for token in backend.get_added_tokens_decoder().values()):
        return None
    cuts = [_VISIBLE_THEN_SPACE]
    if len(splitters) == 1 and splitters[0]["type"] in {"BertPreTokenizer", "ByteLevel"}:
        cuts.append(_LETTER_THEN_CJK_MARK)
    if [n["type"] for n in normalizers] == ["BertNormalizer"] and normalizers[0]["handle_chinese_chars"]:
        cuts.append(_VISIBLE_THEN_IDEOGRAPH)
    # The greedy dot finds the last cut first: a few steps back from the end, whatever the length.
    return re.compile(f"(?s:.*)(?:{'|'.join(cuts)})")


def find_cut(cuts: re.Pattern[str], text: str, limit: int) -> int:
    """Where to cut `text`: the last safe place within `limit` characters, 0 if there is none; all of a short one.

    >>> find_cut(re.compile(f"(?s:.*){_VISIBLE_THEN_SPACE}"), "shares fell again", 13)
    11
    """
    if len(text) <= limit:
        return len(text)
    found = cuts.match(text, 0, limit + 1)
    return found.end() if found else 0


def _members(component: Any, plural: str) -> list[Mapping[str, Any]]:
    """The settings of a component, or of each member of a sequence of components."""
    return list(_flatten(json.loads(component.__getstate__()), plural)) if component is not None else []


def _flatten(settings: Mapping[str, Any], plural: str) -> Iterator[Mapping[str, Any]]:
    if settings["type"] != "Sequence":
        yield settings
        return
    for member in settings[plural]:
        yield from _flatten(member, plural)


def _splits_at_spaces(splitters: list[Mapping[str, Any]]) -> bool:
    """Whether pieces end at spaces; of several splitters the first to see spaces decides, the others split on."""
    if any(splitter["type"] not in _SPLIT_AT_SPACES | _SPLIT_FURTHER for splitter in splitters):
        return False
    first = next((splitter for splitter in splitters if splitter["type"] in _SPLIT_AT_SPACES), None)
    # `use_regex` is ByteLevel's, `split` is Metaspace's: without it they only rewrite spaces.
    return first is not None and first.get("use_regex", True) and first.get("split", True)


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    """Whether it rewrites characters by their neighbours at most, never across a space after a visible character."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in _LOCAL_NORMALIZERS
    pattern = normalizer["pattern"]
    if "Regex" in pattern:
        return pattern["Regex"] in _LOCAL_REPLACED_REGEXES
    return not _SPACE_INSIDE.search(pattern["String"])
