"""Credentials in hrefs, headers and messages: refused, dropped or hidden, and in no file, no output and no log."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eocube.console import for_people, say
from eocube.net.redaction import HIDDEN, one_line, redacted, safe_url, secret_in
from eocube.scenes.items import _unsigned
from eocube.scenes.search import search
from tests.eocube.scenes.test_search import EVER, RGB, WORLD, s2_item

NAMES = (
    "Signature", "sig", "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "token",
    "access_token", "key", "Key-Pair-Id", "api_key", "apikey", "subscription-key", "client_secret", "secret",
    "password", "passwd", "pwd", "auth", "Authorization", "jwt", "sas", "credential", "cred", "hmac", "Policy",
    "sessionid",
)  # fmt: skip
SECRET = "S3cr3tV4lue9x"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["?{n}={s}", "?a=1&{n}={s}", "?a=1;{n}={s}", "#{n}={s}", ";{n}={s}", "?{q}={s}"])
def test_an_href_with_a_credential_is_kept_by_no_plan(name: str, form: str) -> None:
    encoded = "".join(f"%{ord(c):02x}" for c in name)
    href = "https://host/B04.tif" + form.format(n=name, s=SECRET, q=encoded)
    if form.startswith("#"):
        assert _unsigned(href, None) == "https://host/B04.tif", "no server is sent a fragment"
        return
    with pytest.raises(OSError, match=r"carry a signature or credential.*--source-options") as caught:
        _unsigned(href, None)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "href",
    [f"https://user:{SECRET}@host/x.tif", f"s3://user:{SECRET}@bucket/x.tif", f"/vsicurl/https://u:{SECRET}@host/x.tif",
     f"https://{SECRET}@host/x.tif", f"https://u%3A{SECRET}%40host/?x=//u:{SECRET}@h", f"s3://bucket/x.tif?sig={SECRET}",
     f"https://host/x.tif?x=eyJ{SECRET}.{SECRET}", "https://host/x.tif?x=AKIAABCDEFGHIJKLMNOP",
     f"/vsicurl?token={SECRET}&url=https://host/x.tif"],
)  # fmt: skip
def test_user_information_and_what_looks_like_a_credential_is_refused(href: str) -> None:
    with pytest.raises(OSError, match="carry a signature or credential") as caught:
        _unsigned(href, None)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "href",
    ["https://host/x.tif", "https://host/x.tif?band=3&date=2024-01-01", "s3://bucket/token/key=1/x.tif",
     "/data/50% off?key=1/x.tif", "https://host/items@home/x.tif", "s3://bucket/a#b.tif"],
)  # fmt: skip
def test_an_ordinary_href_stays_as_it_is(href: str) -> None:
    assert _unsigned(href, None) == href and secret_in(href) is None


def test_the_catalogue_that_signs_gets_its_signatures_taken_off() -> None:
    signed = f"https://acc.blob.core.windows.net/c/x.tif?st=2024&se=2025&sp=rl&sig={SECRET}"
    assert _unsigned(signed, "planetary-computer") == "https://acc.blob.core.windows.net/c/x.tif"


values = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~", min_size=8, max_size=40)


@given(
    secret=values,
    name=st.sampled_from(NAMES),
    more=st.sampled_from(["", "a=1&", "x=%2F;"]),
    where=st.sampled_from(["?", "#", ";", "user"]),
    host=st.sampled_from(["https://host", "s3://bucket", "http://h:8080"]),
)
def test_no_secret_of_an_href_is_in_what_is_found_or_said(
    secret: str, name: str, more: str, where: str, host: str
) -> None:
    secret = f"Zq{secret}"  # so that it is no part of anything else
    href = f"{host}/B04.tif{where}{more}{name}={quote(secret)}"
    if where == "user":
        scheme, _, rest = host.partition("://")
        href = f"{scheme}://me:{secret}@{rest}/B04.tif"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            kept = _unsigned(href, None)
        except OSError as error:
            kept = str(error)
        say(for_people(), f"cannot read {href}: gone")
    assert secret not in kept and secret not in said.getvalue() and secret not in safe_url(href)
    assert secret not in one_line(f"({href}), and again '{href}'")


def test_no_secret_of_a_catalogue_is_in_a_plan(tmp_path: Path) -> None:
    items = []
    for number, name in enumerate(NAMES):
        item = s2_item(f"S2A_33TWM_20230815_{number}_L2A", geometry=None, bbox=[number, 46.0, number + 0.9, 47.0])
        item["assets"]["red"]["href"] = f"https://host/B04.tif?{name}={SECRET}"
        items.append(item)
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = search(str(path), RGB, WORLD, EVER)
    assert len(found.refused) == len(NAMES) and not found.scenes
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {s}", "{{'Authorization': 'Bearer {s}'}}", "header Bearer {s} was refused",
        "x-api-key: {s}",
        '{{"x-api-key": "{s}"}}', "Cookie: a=1; session={s}; b=2", "Set-Cookie: id={s}; Path=/", "client_secret={s}",
        "'client_secret': '{s}'", "refresh_token={s}", "aws_secret_access_key = {s}", "Ocp-Apim-Subscription-Key: {s}",
        "AccountKey={s};Endpoint=x", "https://host/x?a=1,b={s}, gone", "Basic {s}",
        "eyJhbGciOiJI{s}.{s}", "password: {s}", "https://me:{s}@host/x", "https://host/x#access_token={s}",
        "auth={s}", "X-Amz-Security-Token: {s}",
    ],
)  # fmt: skip
def test_redaction_knows_what_credentials_look_like(text: str) -> None:
    shown = redacted(text.format(s=SECRET))
    assert SECRET not in shown and (HIDDEN in shown or "?" not in shown)


@pytest.mark.parametrize(
    "text",
    ["did you mean nano?", "KeyError: 'red'", "items.json#0", "has no asset for B04 (red or B04)", "author: someone",
     "asset key red: gone", "cannot read s3://bucket/a b", "what now? nothing", "line 3: expected ',' (char 7)"],
)  # fmt: skip
def test_redaction_leaves_ordinary_words_alone(text: str) -> None:
    assert redacted(text) == text
