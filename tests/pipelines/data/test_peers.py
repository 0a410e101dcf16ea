"""Event files as other libraries decode them: tonic, and for AEDAT 4.0 the aedat package behind it."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.events import Recording
from pipelines.data.sources.recordings import read_aedat, read_nmnist
from tests.pipelines.data import writers
from tests.pipelines.data.sources.test_events import ASSETS
from tests.pipelines.data.test_events import TONIC, real
from tests.pipelines.data.writers import random_recording, same

DECODE = """
import json, sys
import numpy as np
import tonic.io
from tonic.datasets import NMNIST
found = {}
for name, path in json.loads(sys.argv[1]).items():
    if name.startswith("nmnist"):
        e = tonic.io.read_mnist_file(path, dtype=NMNIST.dtype)
    elif name.startswith("aedat4"):
        e = tonic.io.read_aedat4(path)
    else:  # read_dvs_ibm and read_dvs_128 without their first line, which fails in tonic 1.7.0
        version, start, _ = tonic.io.read_aedat_header_from_file(path)
        raw = tonic.io.get_aer_events_from_file(path, version, start)
        a, t = raw["address"], raw["timeStamp"]
        ibm = ((a >> 17) & 0x1FFF, (a >> 2) & 0x1FFF, t, (a >> 1) & 1)
        dvs = ((a >> 8) & 0x7F, (a >> 1) & 0x7F, t, a & 1)
        e = tonic.io.make_structured_array(*(ibm if name == "ibm" else dvs))
    names = "on" if "on" in e.dtype.names else "p"
    for column, field in zip("txyp", ("t", "x", "y", names)):
        found[f"{name}.{column}"] = e[field].astype(np.int64)
np.savez(sys.argv[2], **found)
"""


def test_tonic_decodes_the_same_events(shared_data: Path, tmp_path: Path) -> None:
    if subprocess.run([TONIC, "-c", "import tonic, aedat"], capture_output=True).returncode:
        pytest.skip("needs tonic and aedat; set SPIKEPRUNE_TONIC_PYTHON to a Python that has them")
    files = {
        f"nmnist{i}": writers.nmnist(r, 50 * i or None)
        for i, r in enumerate(real(shared_data, "nmnist-small", 4))
    }
    files |= {f"aedat4-{k}": (ASSETS / f"dv_{k}.aedat4").read_bytes() for k in ("none", "lz4", "zstd")}
    files["ibm"] = writers.aedat31(random_recording(3), junk=False)
    files["dvs128"] = writers.aedat2(real(shared_data, "dvs128-objects", 1)[0])
    paths = {}
    for name, data in files.items():
        paths[name] = str(tmp_path / name)
        Path(paths[name]).write_bytes(data)
    command = [TONIC, "-c", DECODE, json.dumps(paths), str(tmp_path / "found.npz")]
    subprocess.run(command, check=True)
    theirs = np.load(tmp_path / "found.npz")
    for name, data in files.items():
        ours = read_nmnist(data) if name.startswith("nmnist") else read_aedat(data)[0]
        found = Recording(*(theirs[f"{name}.{c}"] for c in "txyp"))
        if name == "dvs128":  # tonic leaves the camera's own orientation and polarity
            found = found._replace(x=127 - found.y, y=127 - found.x, p=1 - found.p)
        assert len(found.t) > 100
        assert same(ours, found), name
