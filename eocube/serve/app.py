"""Answers requests: the routes of the server, what each takes and which errors it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from eocube.serve.cube import ServedCube
from eocube.serve.guard import Guard, allowed_names, line_of, status_of
from eocube.serve.server import Place

STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True, slots=True)
class Serving:
    """How cubes are served: bytes for what is kept, and whether sources may be read again."""

    memory: int = 1_000_000_000
    source: bool = False
    allow_local: bool = False


def app_of(cubes: Sequence[ServedCube], place: Place, serving: Serving) -> ASGIApp:
    """The server of some cubes."""
    app = FastAPI(title="eocube serve", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/cubes")
    def listed() -> JSONResponse:
        from importlib.metadata import version

        return JSONResponse(
            {"cubes": [c.document(overview=False, source=False) for c in cubes], "version": version("eocube")}
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": line_of(error)}, status_of(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")
    return Guard(app, allowed_names(place.host, place.allow_hosts))
