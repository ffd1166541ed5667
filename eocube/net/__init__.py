"""Ask hosts again when requests fail, keep objects on any store, hide secrets.

Every layer at which something is asked or done again, from the request outwards:

1. **A client's own.** botocore's and s3fs's retries are switched off (`storage_options.filesystem_for`), and so are
   pystac-client's (`scenes/fetch.py`); aiohttp has none. What is left is layer 2. The package that signs hrefs of the
   Planetary Computer asks again inside its own HTTP client, within one try of layer 2.
2. **A request:** `network.Network.call`, 6 tries (`NetworkLimits.tries`), waits from 0.25 s, doubled up to 20 s and
   jittered, or what the host's `Retry-After` says. Objects of a store, documents of a catalogue, ranges of a file.
   `failures.judge` tells what may pass. A host that is down (6 failures on end after an answer) is asked by one request
   at a time while the others wait, 10 minutes at most (`patience`), and no try is counted meanwhile; catalogues and
   overviews, for which a user waits, are not patient: they fail after their tries.
3. **GDAL's request:** 3 more tries, 0.5 s apart and more, for 429 and 5xx (`raster/opening.py`). Where
   `--max-requests-per-second` counts requests out, GDAL reads through `ranged_file` instead: its layer is off, and each
   range is a request of layer 2.
4. **A read of a source** (`read/sources.py`, `Sources.tried`): 4 tries through `Network.call`, each with a handle
   that is signed and opened anew, since a token may have run out; then the window ends `read_failed`. Around layer 3,
   so up to 16 requests for a range, or 24 of layer 2. A file of this machine is read once.
5. **An overview** that settles an offset (`scenes/dark_pixels.py`): the same with 4 tries, not patient; then the item
   counts as not measured.
6. **A batch on the device.** Out of memory: done again in halves, once, for good (`products/half_batches.py`). Latents
   that are not sound: these windows again at the next wider precision, each once (`run/unit.py`); then `encode_failed`.
7. **A work unit** whose actor died or hung (`run/pool.py`): 3 times (`ATTEMPTS`), from the second on alone on an actor;
   then it is left for a later run. Ends that are not its fault (its node went, Ray took it away) are not counted. Ray's
   own restarts are off (`max_restarts=0`). Actors that fail to start are started anew, until 5 in a row have died.
8. **The lease** (`store/lease.py`): taken in 5 tries, for drivers that begin at the same moment; its renewal, every
   20 s, tries again at the next turn until 90 s are over, each try being a request of layer 2.
9. **The same command again** (`run/resume.py`): units without a receipt and windows not attempted always, windows
   that failed with `--retry read_failed`, `--retry encode_failed`, objects that are damaged with `--retry damaged`.

What `run` says of "requests made again" counts layers 2, 4 and 5. Training reads its shards by a loop of its own
(`model/training/sources/shards.py`), for `model` knows nothing of `eocube`.
"""
