"""Event frames: against the rule written out event by event, and against tonic where it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pipelines.data.events import EventBatch, Frames, Recording, Sensor, fault, from_arrow, sort, to_arrow

TONIC = os.environ.get("SPIKEPRUNE_TONIC_PYTHON", sys.executable)
"""A Python that has tonic (GPL, so never a dependency): its own environment, or this one."""


def real(shared_data: Path, name: str, rows: int) -> list[Recording]:
    table = pq.read_table(next((shared_data / name).glob("train-*.parquet"))).slice(0, rows)
    columns = [table.column(c).to_pylist() for c in "txyp"]
    return [Recording(*(np.array(c[i]) for c in columns)) for i in range(rows)]


def written_out(r: Recording, T: int, by: str, sensor: Sensor, height: int, width: int) -> np.ndarray:
    """The rule, one event after the other."""
    frames = np.zeros((T, sensor.polarities, height, width), np.int64)
    n, window = len(r.t) // T, (int(r.t[-1]) - int(r.t[0])) // T if len(r.t) else 0
    for k, (t, x, y, p) in enumerate(zip(*(v.tolist() for v in r), strict=True)):
        for frame in range(T):
            start = int(r.t[0]) + frame * window
            inside = start <= t < start + window if by == "time" else frame * n <= k < (frame + 1) * n
            if inside:
                row, column = y * height // sensor.height, x * width // sensor.width
                frames[frame, p if sensor.polarities > 1 else 0, row, column] += 1
    return frames


recordings = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 5), st.integers(0, 3), st.integers(0, 1)), max_size=40
).map(lambda rows: Recording(*np.array(sorted(rows), np.int64).reshape(-1, 4).T))


@given(r=recordings, T=st.integers(1, 7), by=st.sampled_from(["time", "count"]), halve=st.booleans())
@settings(max_examples=150)
def test_frames_are_the_rule_written_out(r: Recording, T: int, by: str, halve: bool) -> None:
    sensor = Sensor(6, 4)
    height, width = (2, 3) if halve else (4, 6)
    frames = Frames(T=T, by=by, height=height, width=width, sensor=sensor)  # type: ignore[arg-type]
    assert np.array_equal(frames.count(r), written_out(r, T, by, sensor, height, width))


def test_one_polarity_ignores_p() -> None:
    r = Recording(np.array([0, 5, 9]), np.array([699, 0, 3]), np.zeros(3, int), np.ones(3, int))
    counts = Frames(T=3, by="count", height=1, width=700, sensor=Sensor(700, 1, 1)).count(r)
    assert counts.shape == (3, 1, 1, 700)
    assert [c[0, 0].argmax() for c in counts] == [699, 0, 3]


def test_a_batch_is_its_recordings_through_arrow(shared_data: Path) -> None:
    rows = real(shared_data, "nmnist-small", 6)
    batch = from_arrow(to_arrow(rows).slice(1, 4))
    assert isinstance(batch, EventBatch)
    assert len(batch) == 4
    frames = Frames(T=5, by="time", height=17, width=17, sensor=Sensor(34, 34))
    found = frames.batch(batch)
    assert found.dtype == np.float32
    for row, r in zip(found, rows[1:5], strict=True):
        assert np.array_equal(row, frames.count(r))
        assert row.sum() > 0.98 * len(r.t)  # all but what the division leaves over


TONIC_SCRIPT = """
import json, sys
import numpy as np
from tonic.transforms import ToFrame
path, sensor, T = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
data, out = np.load(path), {}
for i in range(int(data["n"])):
    e = np.zeros(len(data[f"t{i}"]), [("t", int), ("x", int), ("y", int), ("p", int)])
    for c in "txyp":
        e[c] = data[f"{c}{i}"]
    out[f"time{i}"] = ToFrame(sensor_size=sensor, n_time_bins=T)(e)
    out[f"count{i}"] = ToFrame(sensor_size=sensor, n_event_bins=T)(e)
np.savez(sys.argv[4], **out)
"""


@pytest.mark.parametrize(("name", "size"), [("nmnist-small", 34), ("dvs128-objects", 128)])
@pytest.mark.parametrize("T", [1, 7, 16])
def test_bit_equal_to_tonic(shared_data: Path, tmp_path: Path, name: str, size: int, T: int) -> None:
    if subprocess.run([TONIC, "-c", "import tonic"], capture_output=True).returncode:
        pytest.skip("needs tonic; set SPIKEPRUNE_TONIC_PYTHON to a Python that has it")
    rows = real(shared_data, name, 5)
    arrays = {f"{c}{i}": v for i, r in enumerate(rows) for c, v in zip("txyp", r, strict=True)}
    np.savez(tmp_path / "events.npz", n=len(rows), **arrays)
    command = [TONIC, "-c", TONIC_SCRIPT, tmp_path / "events.npz", json.dumps([size, size, 2]), str(T)]
    subprocess.run([*command, tmp_path / "frames.npz"], check=True)
    theirs = np.load(tmp_path / "frames.npz")
    for i, r in enumerate(rows):
        for by in ("time", "count"):
            ours = Frames(T=T, by=by, height=size, width=size, sensor=Sensor(size, size))  # type: ignore[arg-type]
            assert np.array_equal(ours.count(r), theirs[f"{by}{i}"]), (by, i)


def test_a_size_beyond_the_sensor_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.frames.size: 48x48 is not possible; the sensor has 34x34"):
        Frames.of(Sensor(34, 34), T=4, by="time", size=(48,), where="data.frames.size")
    assert Frames.of(Sensor(34, 30), T=4, by="time", size=None, where="").shape == (4, 2, 30, 34)
    assert Frames.of(Sensor(34, 30), T=4, by="time", size=(8, 9), where="").shape == (4, 2, 8, 9)


@pytest.mark.parametrize(
    ("events", "what"),
    [
        (([], [], [], []), "empty recording"),
        (([0, 1], [6, 0], [0, 0], [0, 1]), "1 of 2 events off the 6x4 sensor (the first at x 6, y 0)"),
        (([0, 1], [0, 0], [0, 4], [0, 1]), "off the 6x4 sensor"),
        (([0, 1], [0, -1], [0, 0], [0, 1]), "off the 6x4 sensor"),
        (([0, 1], [0, 1], [0, 0], [0, 2]), "polarities other than 0 and 1 (such as 2)"),
        (([3, 1, 2], [0, 1, 2], [0, 0, 0], [0, 1, 1]), "unsorted times (1 of 3 events"),
        (([0, 2**31], [0, 1], [0, 0], [0, 1]), "lasts over 2147 s"),
    ],
)
def test_faults_are_told(events: tuple[list[int], ...], what: str) -> None:
    found = fault(Recording(*(np.array(v, np.int64) for v in events)), Sensor(6, 4))
    assert found is not None
    assert what in found


def test_sorting_mends_times_and_keeps_ties_in_order() -> None:
    r = sort(Recording(np.array([5, 1, 5, 0]), np.array([0, 1, 2, 3]), np.zeros(4, int), np.zeros(4, int)))
    assert r.t.tolist() == [0, 1, 5, 5]
    assert r.x.tolist() == [3, 1, 0, 2]
    assert fault(r, Sensor(6, 4)) is None
