"""What is shown of other people's text and of addresses: no secret, no control character, nothing else changed."""

from __future__ import annotations

import logging
import pickle
import re
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit import ShardkitError, UsageError, printable, public_address
from shardkit.errors import ShardkitWarning
from shardkit.redaction import redact, redact_logs, user_of

PUBLIC = {
    "https://user:secret@host/x.jsonl?X-Amz-Signature=secret#secret": "https://host/x.jsonl",
    "https://secret@host/x": "https://host/x",
    "https://user:secret@host": "https://host",
    "https://user:secret@[::1]:8080/x?secret": "https://[::1]:8080/x",
    "https://user:se@cret@host/x": "https://host/x",
    "https://user:secret/cret@host/x": "https://host/x",
    "https://user:secret?cret@host/x": "https://host/x",
    "https://user:secret#cret@host/x": "https://host/x",
    "https://user:secret": "https://[hidden]",
    "ftp://user:secret word\n@host:21/a b": "ftp://host:21/a b",
    "s3://KEY:secret@bucket/x": "s3://bucket/x",
    "s3://KEY:secret/se+cret@bucket/x": "s3://bucket/x",
    "simplecache::https://user:secret@host/x?secret::secret": "simplecache::https://host/x",
    "zip://a.jsonl::https://user:secret@host/a.zip?secret": "zip://a.jsonl::https://host/a.zip",
    "abfs://container:secret@account/x": "abfs://account/x",
    "https:/user:secret@host/x": "https:/host/x",  # as `Path` writes it
}
SAME = [
    "hf://datasets/user/name@main",
    "user/name",
    "user/name@v1",
    "abfs://container@account.dfs.core.windows.net/x",
    "file:///data/what?#1.jsonl",
    "/data/a:b@c/x?y#z",
    "./x@y",
    "C:/Users/x@y",
    "http://127.0.0.1:8080/a@b/c",
    "s3://bucket/part-*.jsonl",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_loses_user_password_query_and_fragment(address: str) -> None:
    assert public_address(address) == PUBLIC[address]
    assert public_address(PUBLIC[address]) == PUBLIC[address]


@pytest.mark.parametrize("address", SAME)
def test_an_address_without_secrets_stays_as_it_is(address: str) -> None:
    assert public_address(address) == address
    assert user_of(address) == ""


@pytest.mark.parametrize("address", [address for address in PUBLIC if not {" ", "\n"} & set(address)])
@pytest.mark.parametrize("around", ["{}", "cannot open {}: no", "at '{}', line 1", '("{}")', "<{}>", "{}\n{}"])
def test_a_message_names_an_address_in_its_public_form(address: str, around: str) -> None:
    text = redact(around.format(address, address))
    assert "secret" not in text
    assert PUBLIC[address].removesuffix("[hidden]") in text
    assert str(UsageError(around.format(address, address))) == text
    assert "secret" not in repr(UsageError(around.format(address, address)))


@given(
    user=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1),
    password=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"])),
)
def test_no_password_however_odd_is_shown(user: str, password: str) -> None:
    """A raw `/`, `?` or `#` in it does not; only behind a raw `@` as well it is a path of another host."""
    user = user.translate(str.maketrans(dict.fromkeys("/?#:@[]")))
    password = password.replace("@", "")
    if not re.match(r"\d+\W*[/?#]", password):  # that is a port and a path
        assert public_address(f"https://{user}:{password}@host/x?y") == "https://host/x"


def test_tokens_are_hidden_and_words_like_them_are_not() -> None:
    text = redact("hf_abcDEF123456 and Bearer abc.def, in hf_datasets of a basic vocabulary")
    assert text == "hf_[hidden] and Bearer [hidden] in hf_datasets of a basic vocabulary"


def test_a_log_of_any_level_names_addresses_in_their_public_form(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    redact_logs()
    redact_logs()
    for name in ("fsspec", "fsspec.http", "httpx", "httpx2"):
        log = logging.getLogger(name)
        log.debug("GET %s", "https://user:secret@host/x?secret")
        try:
            raise ValueError("https://user:secret@host/x?secret")
        except ValueError:
            log.exception("of https://user:secret@host/y")
    lines = [logging.Formatter().format(record) for record in caplog.records]
    assert len(lines) == 8
    assert "secret" not in "".join(lines)
    assert all("https://host/x" in line for line in lines)
    assert "Traceback" in lines[1]


CONTROL = "\x1b[2J\x1b]52;c;aGk=\x07\x00\r\x7f\x9b31m\u202e\u2066\u2028\ud800"


def test_control_characters_are_shown_and_letters_of_every_script_stay() -> None:
    assert printable(CONTROL) == (
        r"\x1b[2J\x1b]52;c;aGk=\x07\x00\r\x7f\x9b31m\u202e\u2066\u2028\ud800"  # so that one can read it
    )
    text = "naïve 日本 म\u200cष 👩\u200d🚀 \ta\nb"
    assert printable(text) == text
    assert printable("a\tb\nc", lines=False) == r"a\tb\nc"


@given(st.text())
def test_what_is_printable_holds_no_control_character_and_is_the_same_again(text: str) -> None:
    shown = printable(text, lines=False)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert printable(shown, lines=False) == shown


def test_errors_and_warnings_hold_no_secret_and_no_control_character_even_when_pickled(tmp_path: Path) -> None:
    error = ShardkitError(f"{CONTROL} https://user:secret@host/x\nnext line", 3)
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert "\x1b" not in str(same.args[0])
        assert "secret" not in repr(same)
        assert same.args == error.args
    assert error.args[1] == 3
    with pytest.warns(ShardkitWarning) as caught:
        warnings.warn(f"{CONTROL} https://user:secret@host/x", ShardkitWarning, stacklevel=1)
    assert "\x1b" not in str(caught[0].message)
    assert "secret" not in str(caught[0].message)


@pytest.mark.parametrize("unit", ["x", "1x", "a-", "a:", "a/", "::", "a@", "hf_", "bearer ", "https:"])
def test_a_megabyte_of_what_may_begin_an_address_or_a_token_is_read_once(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))  # read again from each of its characters, it would take an hour
    assert public_address(text)
    assert redact(text)


def test_a_long_word_before_an_address_hides_nothing_of_its_secrets() -> None:
    text = "x" * 200 + "://user:secret@host/a?sig=1"
    assert public_address(text) == redact(text) == "x" * 200 + "://host/a"
