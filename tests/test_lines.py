"""Lines for people hold no control characters, no secrets, and come to an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.errors import ConfigError, LabelTableError, one_line
from mtop_batch.lines import for_people, has_secrets, listed, shown, without_secrets

HOSTILE = "\x1b[2J\x07\u202eevil\u2066\x9b31m\r\x00\u200b"


@given(st.text() | st.text(st.sampled_from(HOSTILE + "\n ab")))
def test_whatever_a_message_holds_is_printed_in_lines_that_end(text: str) -> None:
    first, *rest = for_people(text).split("\n")
    assert all(line.isprintable() and len(line) < 30_000 for line in (first, *rest))
    assert all(line.startswith("  ") for line in rest)


@given(st.text(), st.integers(10, 50))
def test_a_name_is_one_line(name: str, limit: int) -> None:
    assert shown(name, limit).isprintable()
    if name.isprintable() and len(name) <= limit:
        assert shown(name, limit) == name


def test_long_names_keep_their_beginning_and_their_end() -> None:
    name = "a" * 50_000 + "b" * 49_000
    assert shown(name) == "a" * 98 + "..." + "b" * 98
    assert listed([name] * 30).count("...") == 20
    assert listed([name] * 30).endswith("and 10 more")


SECRET = [
    "s3://AKIA:hunter2@bucket/x",
    "s3://AKIA:hunter2/+with/slashes=@bucket/x",
    "s3a://hunter2@bucket",
    "https://me:hunter2@host:9000/x",
    "ftp://:hunter2@host/x",
    "https://host/x?X-Amz-Algorithm=a&X-Amz-Signature=hunter2",
    "https://bucket.s3.amazonaws.com/x?AWSAccessKeyId=a&Signature=hunter2&Expires=1",
    "https://storage.googleapis.com/x?x-goog-signature=hunter2",
    "https://account.blob.core.windows.net/x?sv=1&sig=hunter2",
    "simplecache::s3://AKIA:hunter2@bucket/x",
]
PLAIN = [
    "s3://bucket/a:b@c/what?a=b",
    "https://host:9000/x?page=2",
    "abfs://container@account.dfs.core.windows.net/x",
    "ssh://me@host/x",
    "/disk/x:y@z",
    "hub:news?split=train",
]


@pytest.mark.parametrize("uri", SECRET)
def test_secrets_in_addresses_are_found_and_left_out(uri: str) -> None:
    assert has_secrets(uri)
    for text in (without_secrets(f"cannot read {uri}: no"), str(LabelTableError(f"{uri}: no"))):
        assert "hunter2" not in text
        assert text.endswith(": no") or uri.endswith("hunter2")
    assert "hunter2" not in one_line(ValueError(uri))


@pytest.mark.parametrize("uri", PLAIN)
def test_other_addresses_stay_as_they_are(uri: str) -> None:
    assert not has_secrets(uri)
    assert str(ConfigError(f"cannot read {uri}: no")) == f"cannot read {uri}: no"


def test_keys_of_the_environment_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken/+")
    assert str(ConfigError("the token t0ken/+ has expired")) == "the token *** has expired"
