"""Soak: two thousand small units through the real engine over S3, a tenth of the requests failing; memory is flat."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import ProxiedS3
from tests.faults.proxy import Faults

ROOT = Path(__file__).resolve().parents[2]
UNITS = 2000


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_memory_stays_flat_over_two_thousand_units_under_faults(
    tmp_path: Path, demo_catalog: Path, s3_behind_proxy: ProxiedS3
) -> None:
    s3_behind_proxy.proxy.faults = Faults(share=0.1, seed=5, delay_s=0.05)
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "AWS_ENDPOINT_URL": s3_behind_proxy.proxy.endpoint}
    env.pop("RAY_ADDRESS", None)
    options = json.dumps(s3_behind_proxy.options)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak_run", str(tmp_path), str(demo_catalog), s3_behind_proxy.bucket,
         options, str(UNITS)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=590,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["units"] >= UNITS
    assert found["logged"] == found["different"] == found["units"]
    assert found["lost"] == [] and set(found["windows"]) <= {"ok", "nodata"} and found["windows"]["ok"] > UNITS / 2
    assert sum(s3_behind_proxy.proxy.met.values()) > UNITS / 20
    print("soak:", json.dumps({k: v for k, v in found.items() if k != "curve"}), dict(s3_behind_proxy.proxy.met))
    print("seconds, driver MB, actor MB:", found["curve"][:: max(1, len(found["curve"]) // 20)])
    for column, name in ((1, "driver"), (2, "actor")):
        values = [row[column] for row in found["curve"]]
        half, late = values[len(values) // 3 : 2 * len(values) // 3], values[-len(values) // 6 :]
        grown = statistics.median(late) - statistics.median(half)
        assert grown < 0.03 * statistics.median(half) + 8, f"{name} grew by {grown:.0f} MB: {values}"
