"""Answers requests: the routes of the server, what each takes and which errors it gives."""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Annotated, Any, Literal, TypeVar

import rasterio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from eocube.console import plain
from eocube.errors import InputError
from eocube.serve.cube import TILE, ServedCube, renewed
from eocube.serve.downloads import download
from eocube.serve.guard import Guard, OverloadedError, allowed_names, line_of, report, status_of
from eocube.serve.keeping import Kept
from eocube.serve.memory import DRAWING
from eocube.serve.pictures import colormap
from eocube.serve.points import point
from eocube.serve.pool import LatestFirst, Leave, LeftError
from eocube.serve.raster import TilePlace
from eocube.serve.server import Place
from eocube.serve.sources import Sources
from eocube.serve.tiles import DIFFERENCE, Ask, Shown

T = TypeVar("T")

STATIC = Path(__file__).with_name("static")
MOST_WAITING = 400
"""Requests that wait for their turn at most."""
PATIENCE = 0.1
"""Seconds between looks at whether a client is still there."""
PNG_SHARE = 8
"""Of what is kept, one part in so many is pictures."""
AGE = 300
"""Seconds for which a browser keeps a tile: a cube may be extended meanwhile."""
LOOK = 5.0
"""Seconds for which the list of cubes is not looked up again in their stores."""
GLANCE = 60.0
"""The same for who asks for tiles alone."""

Text = Annotated[str | None, Query(max_length=400)]


@dataclass(frozen=True, slots=True)
class Serving:
    """How cubes are served: bytes for what is kept, threads that compute, whether sources may be read again."""

    memory: int = 1_000_000_000
    source: bool = False
    allow_local: bool = False
    threads: int = 0
    """0 takes one a core."""


class Service:
    """The cubes, what is kept of them, and the threads that work for requests."""

    def __init__(self, cubes: Sequence[ServedCube], serving: Serving) -> None:
        pictures = serving.memory // PNG_SHARE
        self.kept, self.pictures = Kept(serving.memory - pictures), Kept(pictures)
        self.pool = LatestFirst(serving.threads or len(os.sched_getaffinity(0)))
        self.readers = LatestFirst(4, "read")
        self.drawers = ThreadPoolExecutor(DRAWING, "draw")
        self._serving = serving
        self.shown = {cube.id: self._show(cube) for cube in cubes}
        self._waiting, self._lock, self._downloads = 0, Lock(), BoundedSemaphore(1)
        self._looking, self._looked = Lock(), time.monotonic()

    def _show(self, cube: ServedCube) -> Shown:
        return Shown(cube, self.kept, self.pool, self._sources(cube))

    def _sources(self, cube: ServedCube) -> Sources | None:
        if not self._serving.source:
            return None
        found = Sources(cube, self.kept, self.readers, allow_local=self._serving.allow_local)
        return found if found.there else None

    def due(self, after: float) -> bool:
        """Whether the stores were last looked at so many seconds ago or earlier."""
        return time.monotonic() - self._looked >= after

    def renew(self, after: float) -> None:
        """Show what was written to the stores since they were last looked at, if that is `after` seconds ago or longer.

        A store that cannot be read is shown as it was. Who comes while another looks does not wait.
        """
        if not self.due(after) or not self._looking.acquire(blocking=False):
            return
        try:
            for id_, shown in tuple(self.shown.items()):
                try:
                    if (again := renewed(shown.cube)) is not None:
                        self.shown[id_] = self._show(again)
                except Exception as error:
                    report(f"/api/cubes ({shown.cube.name})", error)
            self._looked = time.monotonic()
        finally:
            self._looking.release()

    def of(self, cube: str) -> Shown:
        """A cube by its id."""
        if cube not in self.shown:
            raise HTTPException(404, f"no cube {plain(cube)[:40]!r}: there is {', '.join(self.shown)}")
        return self.shown[cube]

    def documents(self) -> list[dict[str, Any]]:
        """What is said of each cube."""
        return [
            shown.cube.document(overview=shown.far.there, source=shown.sources is not None)
            for shown in self.shown.values()
        ]

    async def run(self, request: Request, work: Callable[[Leave], T]) -> T:
        """Work for a request on a thread of its own; dropped as far as it is not begun when its client leaves."""
        with self._turn():
            leave = Leave()
            task = asyncio.get_running_loop().run_in_executor(self.drawers, self._unless_left, work, leave)
            while not task.done():
                await asyncio.wait({task}, timeout=PATIENCE)
                if not task.done() and not leave.left and await request.is_disconnected():
                    leave.now()
            return task.result()

    @staticmethod
    def _unless_left(work: Callable[[Leave], T], leave: Leave) -> T:
        if leave.left:
            raise LeftError("the client left before it was made")
        with rasterio.Env():  # once for all that GDAL does in it
            return work(leave)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise OverloadedError(f"{MOST_WAITING} requests wait already: ask again in a moment")
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def download(self, shown: Shown, ask: Ask, bbox: Sequence[float] | None, what: str) -> tuple[Path, str]:
        """A COG in a folder of its own, and its name. One is made at a time."""
        if not self._downloads.acquire(blocking=False):
            raise OverloadedError("a download is being made already: ask again when it is done")
        try:
            handle, path = tempfile.mkstemp(prefix="eocube-", suffix=".tif")
            os.close(handle)
            try:
                return Path(path), download(shown, ask, bbox, what, Path(path))
            except BaseException:
                Path(path).unlink(missing_ok=True)
                raise
        finally:
            self._downloads.release()

    def close(self) -> None:
        """End the threads."""
        self.pool.close()
        self.readers.close()
        self.drawers.shutdown(cancel_futures=True)


def app_of(cubes: Sequence[ServedCube], place: Place, serving: Serving) -> ASGIApp:
    """The server of some cubes."""
    service = Service(cubes, serving)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="eocube serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service
    _errors(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/cubes")
    def listed() -> JSONResponse:
        service.renew(LOOK)
        return JSONResponse({"cubes": service.documents(), "version": _version()})

    @app.get("/tiles/{cube}/{layer}/{time}/{z}/{x}/{y}.png")
    async def tile(
        request: Request, cube: str, layer: str, time: int, z: int, x: int, y: int, bands: Text = None,
        stretch: Literal["percentile", "fixed"] = "percentile", vmin: Text = None, vmax: Text = None,
        other: int | None = None, of: Text = None, source: bool = False, scale: Annotated[int, Query(ge=1, le=2)] = 1,
    ) -> Response:  # fmt: skip
        shown = service.of(cube)
        ask = _ask(layer, time, bands, stretch, vmin, vmax, other, of, source)
        at = TilePlace(z, x, y, TILE * scale)
        if service.due(GLANCE):  # for later tiles: this one does not wait
            asyncio.get_running_loop().run_in_executor(service.drawers, service.renew, GLANCE)
        key = (shown.cube.key, ask, at)
        made = service.pictures.get(key)
        if made is None:
            made = await service.run(request, lambda leave: shown.tile(ask, at, leave))
            service.pictures.put(key, made, len(made))
        return Response(made, media_type="image/png", headers={"cache-control": f"private, max-age={AGE}"})

    @app.get("/api/stretch/{cube}/{layer}/{time}")
    async def stretched(
        request: Request, cube: str, layer: str, time: int, bands: Text = None,
        stretch: Literal["percentile", "fixed"] = "percentile", vmin: Text = None, vmax: Text = None,
        other: int | None = None, of: Text = None,
    ) -> JSONResponse:  # fmt: skip
        shown = service.of(cube)
        ask = _ask(layer, time, bands, stretch, vmin, vmax, other, of, False)
        found = await service.run(request, lambda leave: shown.stretch(ask))
        return JSONResponse({"vmin": list(found.vmin), "vmax": list(found.vmax), "gamma": found.gamma})

    @app.get("/api/point/{cube}")
    async def at_point(request: Request, cube: str, lon: float, lat: float, source: bool = False) -> JSONResponse:
        shown = service.of(cube)
        if source and shown.sources is None:
            raise InputError("the sources are not served: eocube serve --source lets them be")
        sources = shown.sources if source else None
        return JSONResponse(await service.run(request, lambda leave: point(shown, lon, lat, sources, leave)))

    @app.get("/download/{cube}/{layer}/{time}.tif")
    async def downloaded(
        request: Request, cube: str, layer: str, time: int, bbox: Text = None, bands: Text = None,
        what: Literal["values", "picture"] = "values", stretch: Literal["percentile", "fixed"] = "percentile",
        vmin: Text = None, vmax: Text = None, other: int | None = None, of: Text = None, source: bool = False,
    ) -> Response:  # fmt: skip
        shown = service.of(cube)
        ask = _ask(layer, time, bands, stretch, vmin, vmax, other, of, source)
        box = _numbers("bbox", bbox) or None
        path, name = await service.run(request, lambda leave: service.download(shown, ask, box, what))
        return FileResponse(path, media_type="image/tiff", filename=name, background=BackgroundTask(path.unlink))

    @app.get("/api/colormap/{name}")
    def colours_of(name: str) -> JSONResponse:
        if name not in legend_colormaps(service.shown.values()):
            raise HTTPException(404, "no legend has a colormap of that name")
        return JSONResponse({"colours": colormap(name)})

    @app.get("/")
    async def page() -> Response:
        if not (STATIC / "index.html").is_file():
            raise HTTPException(404, "this installation has no page: /api/cubes says what is served")
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")
    return Guard(app, allowed_names(place.host, place.allow_hosts))


def _errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": plain(f"{where}: {first['msg']}")}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        report(request.url.path, error)
        return JSONResponse({"error": line_of(error)}, status_of(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": plain(error.detail)}, error.status_code)


def _ask(
    layer: str, time: int, bands: str | None, stretch: Literal["percentile", "fixed"], vmin: str | None,
    vmax: str | None, other: int | None, of: str | None, source: bool,
) -> Ask:  # fmt: skip
    named = tuple(name for name in (bands or "").split(",") if name)
    low, high = _numbers("vmin", vmin), _numbers("vmax", vmax)
    return Ask(layer, time, named, stretch, low, high, other, of or "", source)


def _numbers(name: str, text: str | None) -> tuple[float, ...]:
    """Numbers with commas between them; InputError for anything else."""
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{name}: give numbers with commas between them") from None
    if not all(math.isfinite(value) for value in found):
        raise InputError(f"{name}: give finite numbers")
    return found


def legend_colormaps(shown: Iterable[Shown]) -> set[str]:
    """The maps of colours that any layer of the cubes is drawn by."""
    legends = [layer.legend for one in shown for layer in one.cube.layers.known.values()]
    return {DIFFERENCE.colormap, *(legend.colormap for legend in legends if legend is not None and legend.colormap)}


def _version() -> str:
    try:
        return version("eocube")
    except PackageNotFoundError:
        return "unknown"
