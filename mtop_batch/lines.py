"""Lines for people: what files say of themselves is shown escaped and shortened, and secrets are not shown."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from itertools import islice
from math import isnan

_MAX_NAME, _MAX_LINE, _MAX_LISTED = 200, 2_000, 20
_MOST_ROWS, _ROWS_AT_AN_END = 40, 10
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
# A password, which may have slashes where a port would have digits; or anything before the bucket.
_USER = re.compile(r"(?<=://)[^/@\s:]*:(?:(?!\d+\b)\S*|[^/@\s]*)@|(?:(?<=s3://)|(?<=s3a://))[^/@\s]+@")
# What signed URLs carry, of Amazon, Google and Microsoft, and what others call the same.
_SIGNED = re.compile(
    r"([?&;](?:X-Amz-[A-Za-z-]+|X-Goog-[A-Za-z-]+|AWSAccessKeyId|GoogleAccessId|Signature|sig|access_token|token|"
    r"api_?key|password|secret)=)[^&;\s'\"]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text without the passwords and signatures in its URLs, and without the keys of the environment.

    >>> without_secrets("s3://key:secret@bucket/x and https://host/x?X-Amz-Signature=1f&n=2")
    's3://***@bucket/x and https://host/x?X-Amz-Signature=***&n=2'
    """
    for name in _SECRET_VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1***", _USER.sub("***@", text))


def has_secrets(uri: str) -> bool:
    """Whether a URL carries credentials or a signature; a user without a password is none, but in `s3://`.

    >>> has_secrets("https://host/x?sig=1f"), has_secrets("ssh://me@host/x"), has_secrets("s3://bucket/a@b?c=d")
    (True, False, False)
    """
    return "://" in uri and bool(_USER.search(uri) or _SIGNED.search(uri))


def shown(name: str, limit: int = _MAX_NAME) -> str:
    """A name from a file as messages show it: in one line whatever it consists of, a long one without its middle.

    >>> shown("a\\nb ü.parquet"), shown("abcdefghij", limit=7)
    ('a\\\\nb ü.parquet', 'ab...ij')
    """
    if len(name) > limit:
        half = (limit - 3) // 2
        name = f"{name[:half]}...{name[len(name) - half :]}"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in name
    )


def listed(names: Collection[str]) -> str:
    """Names from a file as a message lists them.

    >>> listed(["a", "b"]), listed([])
    ('a, b', 'none')
    """
    some = [shown(name) for name in islice(names, _MAX_LISTED)]
    more = [f"and {len(names) - _MAX_LISTED:,} more"] if len(names) > _MAX_LISTED else []
    return ", ".join([*some, *more]) or "none"


def ends(values: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Which things a table for people has: all in their order; of many those with the highest values, and the lowest.

    What has NaN for a value is among the lowest.

    >>> ends({"a": 0.5, "b": 0.9})
    (['a', 'b'], [])
    >>> first, last = ends({str(number): float(number % 100) for number in range(100)})
    >>> first[:2], last[-2:], len(first), len(last)
    (['99', '98'], ['1', '0'], 10, 10)
    """
    if len(values) <= _MOST_ROWS:
        return [*values], []
    ordered = sorted(values, key=lambda name: (isnan(values[name]), -values[name]))
    return ordered[:_ROWS_AT_AN_END], ordered[-_ROWS_AT_AN_END:]


def counted(number: int, noun: str) -> str:
    """A number of things, for messages and logs.

    >>> counted(1, "file"), counted(2500, "file")
    ('1 file', '2,500 files')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The beginning of a hint for who has given a name that is not known.

    >>> did_you_mean("moood", ["mood", "topic"]), did_you_mean("x", ["mood"])
    ("did you mean 'mood'? ", '')
    """
    close = get_close_matches(name, known, n=1)
    return f"did you mean {shown(close[0])!r}? " if close else ""


def for_people(text: str) -> str:
    """A message as terminals and logs get it: no control characters, no secrets, no line without end.

    Lines after the first are indented, so that nothing in a message reads like a line of its own.

    >>> for_people("no \\x1b[31mfile\\nerror: none")
    'no \\\\x1b[31mfile\\n  error: none'
    """
    first, *rest = without_secrets(text).split("\n")
    return "\n".join([shown(first, _MAX_LINE), *(f"  {shown(line.strip(), _MAX_LINE)}" for line in rest)])
