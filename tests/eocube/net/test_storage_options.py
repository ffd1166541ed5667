"""Storage options as users write them, which of them a URL takes, and that nobody sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eocube.errors import InputError
from eocube.net.redaction import redacted, safe_url, secrets_of
from eocube.net.storage_options import filesystem_for, gdal_s3_options, host_of, options_for, parse_options
from eocube.run.arguments import EncodeOptions, typed
from eocube.run.options import EngineOptions

ENDPOINT = "http://user:hush@minio.local:9000"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_NO_SIGN_REQUEST", "AWS_REQUEST_PAYER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("EOCUBE_STORAGE_OPTIONS", raising=False)


def test_json_pairs_and_files_say_the_same(tmp_path: Path) -> None:
    wanted = {"anon": True, "key": "0123", "client_kwargs": {"endpoint_url": "http://h:1"}, "connect_timeout": 5}
    (tmp_path / "o.json").write_text(json.dumps(wanted))
    pairs = ["anon=true", "key=0123", "client_kwargs.endpoint_url=http://h:1", "connect_timeout=5"]
    assert parse_options([json.dumps(wanted)]) == parse_options(pairs) == wanted
    assert parse_options([f"@{tmp_path / 'o.json'}"]) == wanted
    assert parse_options([]) is None and parse_options(["{}"]) == {}


@pytest.mark.parametrize("words", [["hush"], ['{"secret": "hush"'], ["key=hush", "key.inner=hush"], ["@/nowhere"]])
def test_what_cannot_be_read_is_named_without_its_value(words: list[str]) -> None:
    with pytest.raises(InputError, match="--storage-options") as caught:
        parse_options(words)
    assert "hush" not in str(caught.value)


def test_a_url_takes_what_its_protocol_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://h:1"}, "block_size": 100}
    assert options_for("s3://b/x", both) == both
    assert options_for("https://h/x.json", both) == {"block_size": 100}
    assert options_for("/data/x.zarr", both) == options_for("memory://x", both) == {}
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert options_for("s3://b/x", None) == {"anon": True, "requester_pays": True}
    assert "anon" not in options_for("s3://b/x", both), "keys that are given are used"
    assert gdal_s3_options({}) == {"AWS_NO_SIGN_REQUEST": "YES", "AWS_REQUEST_PAYER": "requester"}
    monkeypatch.setenv("EOCUBE_STORAGE_OPTIONS", "profile=mine requester_pays=false")
    assert options_for("s3://b/x", None) == {"profile": "mine", "requester_pays": False}
    assert options_for("s3://b/x", {}) == {"anon": True, "requester_pays": True}, "none is an answer too"


def test_the_environments_endpoint_holds_for_gdal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.local:9000")
    said = gdal_s3_options({"profile": "mine"})
    assert said == {
        "AWS_PROFILE": "mine", "AWS_S3_ENDPOINT": "minio.local:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"
    }  # fmt: skip
    assert host_of("s3://b/x") == "minio.local:9000"


def test_limits_count_by_the_host_that_is_asked() -> None:
    assert host_of("s3://bucket/x") == "bucket.s3.amazonaws.com"
    assert host_of("s3://bucket/x", {"client_kwargs": {"endpoint_url": ENDPOINT}}) == "minio.local:9000"
    assert host_of("https://user:hush@h.org/x?sig=1") == "h.org"
    assert host_of("gs://bucket/x") == "bucket"
    assert host_of("/data/x") == host_of("file:///data/x") == host_of("memory://x/y") == ""


def test_s3_has_one_layer_of_retries() -> None:
    filesystem, path = filesystem_for("s3://b/x", {"key": "k", "secret": "s"})
    assert path == "b/x" and filesystem.retries == 1
    assert filesystem.config_kwargs["retries"] == {"max_attempts": 0}
    given = {"key": "k", "secret": "s", "config_kwargs": {"retries": {"max_attempts": 9}}}
    assert filesystem_for("s3://b/x", given)[0].config_kwargs["retries"] == {"max_attempts": 9}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:hush@bucket/x?sig=hush&y failed", "s3://bucket/x failed"),
        ("https://u:p@ss-hush@h.org/x", "https://h.org/x"),
        ("GET https://h.org/a.tif?sig=hush, then https://h.org/b.tif", "GET https://h.org/a.tif, then https://h.org/b.tif"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=hush/x, Signature=hush", None),
        ("{'aws_secret_access_key': 'hush', 'anon': False}", None),
        ("AccountKey=hush;EndpointSuffix=core.windows.net", None),
        ("user@example.org wrote /data/x.tif", "user@example.org wrote /data/x.tif"),
    ],
)  # fmt: skip
def test_credentials_are_taken_out_of_text(text: str, shown: str | None) -> None:
    assert "hush" not in redacted(text)
    assert shown is None or redacted(text) == shown


def test_given_secrets_are_taken_out_wherever_they_stand() -> None:
    options = {"key": "AKIAEXAMPLE", "client_kwargs": {"endpoint_url": "http://h:1", "aws_session_token": "tok3n"}}
    secrets = secrets_of(options)
    assert secrets == ("AKIAEXAMPLE", "tok3n")
    assert redacted("no such id AKIAEXAMPLE at http://h:1", secrets) == "no such id *** at http://h:1"
    assert safe_url("https://u:p@h/x?sig=1#f") == "https://h/x" and safe_url("/data/x?") == "/data/x?"


def test_options_print_no_value() -> None:
    given = parse_options(["secret=hush", "client_kwargs.token=hush"])
    asked = EncodeOptions(storage_options=("secret=hush",))
    for shown in (given, EngineOptions(storage_options=given), asked, *typed(asked)):
        assert "hush" not in repr(shown) and "hush" not in str(shown) and "hush" not in f"{shown}"
