"""A plan that was lost is searched for with all that its store says was asked, nothing left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eocube.errors import StoreError
from eocube.run import repair
from eocube.run.arguments import EncodeOptions, typed
from eocube.run.request import Request

ASKED = EncodeOptions(
    bbox=("9.06", "48.64", "9.09", "48.66"), extent=("9.0", "48.6", "9.2", "48.7"), datetime="2024-05-01/2024-05-31",
    out="cube.zarr", catalog="catalog.json", bands="B02,B03,B04", offset="-0.1", max_cloud="40", precision="fp32",
    storage="codes", quality="small", resolution="20",
)  # fmt: skip


def asked_again(monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]) -> Request:
    found: list[Request] = []
    monkeypatch.setattr(repair, "product_of", lambda request: None)
    monkeypatch.setattr(repair, "make_plans", lambda request, *_: found.append(request) or ())
    repair._searching(None)(document)
    return found[0]


@pytest.mark.parametrize("changes", [{}, {"offset": None, "quality": None, "storage": None, "max_cloud": None}])
def test_the_same_is_asked_again(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    selection, running, _ = typed(replace(ASKED, **changes))
    request = Request.parse(selection, running, on_gpu=False)
    again = asked_again(monkeypatch, request.document())
    assert again.document() == request.document()
    assert again.sensor == request.sensor and again.extent == request.extent


@pytest.mark.parametrize("broken", [{"offset": "lots"}, {"bbox": "here"}, {"resolution": None}])
def test_a_garbled_request_is_said(monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]) -> None:
    selection, running, _ = typed(ASKED)
    document = Request.parse(selection, running, on_gpu=False).document()
    with pytest.raises(StoreError, match="does not say what was asked for"):
        asked_again(monkeypatch, {**document, **broken})
