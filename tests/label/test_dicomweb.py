# Copyright (c) The SAM-SP bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A real server on a real Orthanc: NIfTI and DICOM SEG out, labels stored as DICOM SEG, retraining from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from highdicom.seg import segread
from PIL import Image

from bundle.data.volume_files import open_volume
from tests.blocks import draw_blocks
from tests.label import debian
from tests.label.client import Client, Server, app_models
from tests.label.orthanc import Orthanc, find_plugin
from tests.label.series import MODEL, STUDY, by_command, received, write_series
from tests.label.viewer import click_and_run, opened, run_model

NAMES = ["front", "back"]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    program, plugin = debian.find("Orthanc", "usr/sbin/Orthanc"), find_plugin()
    if program is None or plugin is None:
        pytest.skip("needs Orthanc with DICOMweb: make test-label, or apt-get install orthanc orthanc-dicomweb")
    running = Orthanc(program, plugin, tmp_path_factory.mktemp("orthanc"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    folder.mkdir()
    write_series(folder, draw_blocks(0)[0])
    return folder


@pytest.fixture(scope="module")
def uid(orthanc: Orthanc, folder: Path) -> str:
    """SeriesInstanceUID of the series in the archive."""
    orthanc.add(folder)
    (found,) = orthanc.series("MR")
    return found


@pytest.fixture(scope="module")
def server(
    orthanc: Orthanc, uid: str, volume_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    app = tmp_path_factory.mktemp("app")
    running = Server("--dicomweb", orthanc.dicomweb, "--modality", "MR", "--model", volume_model, "--app", app)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return server.client


def test_a_series_gives_nifti(
    server: Server, client: Client, uid: str, folder: Path, volume_model: Path, tmp_path: Path
) -> None:
    classes, where = by_command(volume_model, folder, tmp_path / "command")["series"]
    found, affine = received(client, uid, tmp_path)
    assert found.any()
    np.testing.assert_array_equal(found, classes)
    np.testing.assert_allclose(affine, where, atol=1e-4)
    assert list((app_models(server, MODEL).parents[2] / "cache").rglob("*.dcm"))  # and not in the home of the user


def test_a_series_gives_dicom_seg(client: Client, uid: str, tmp_path: Path) -> None:
    classes, _ = received(client, uid, tmp_path)
    answer = client.infer(MODEL, uid, {"label_info": [{"name": name} for name in NAMES]}, output="dicom_seg")
    assert answer.status == 200, answer
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    segmentation = segread(tmp_path / "seg.dcm")
    present = [number for number in (1, 2) if (classes == number).any()]
    assert segmentation.number_of_segments == len(present)
    for segment, number in enumerate(present, start=1):
        assert segmentation.get_segment_description(segment).SegmentLabel == NAMES[segment - 1]
        frames = segmentation.get_volume(segment_numbers=[segment], combine_segments=False).array
        assert np.count_nonzero(frames) == np.count_nonzero(classes == number)


# Of the first viewport, without its texts; and a voxel in it, in both.
VIEWPORT = (slice(150, 750), slice(320, 530))
PLACE, VOXEL = (420, 420), (15, 9)


@pytest.fixture(scope="module")
def page(client: Client) -> Iterator[Any]:
    """OHIF with the series, connected to the server."""
    pytest.importorskip("playwright", reason="needs playwright: make test-label")
    chromium = debian.find("chromium", "usr/lib/chromium/chromium")
    if chromium is None:
        pytest.skip("needs Chromium: make test-label, or apt-get install chromium")
    with opened(chromium, client.url, STUDY) as found:
        yield found


def picture(page: Any, folder: Path) -> np.ndarray:
    """The first viewport."""
    page.screenshot(path=folder / "page.png")
    return np.asarray(Image.open(folder / "page.png").convert("RGB"), dtype=int)[VIEWPORT]


def test_ohif_shows_the_mask(page: Any, tmp_path: Path) -> None:
    before = picture(page, tmp_path)
    run_model(page)
    after = picture(page, tmp_path)
    assert (np.ptp(before, axis=-1) < 5).mean() > 0.95  # the images are gray, and masks have colors
    assert (np.abs(before - after).max(axis=-1) > 5).mean() > 0.01


def test_ohif_sends_clicks(page: Any, client: Client, uid: str, tmp_path: Path) -> None:
    """Both classes of the model are there to click for; the answer is that to the clicks."""
    sent = click_and_run(page, "front", PLACE)
    assert f"/infer/{MODEL}_clicks?" in sent["url"] and sent["background"] == []
    (click,) = sent["front"]
    assert np.abs(np.array(click[:2]) - VOXEL).max() <= 1 and len(click) == 3
    said = {"points": {"front": {"foreground": [click]}}}
    found, _ = received(client, uid, tmp_path, **said)
    answer = client.infer(f"{MODEL}_clicks", uid, {key: sent[key] for key in ("front", "background")})
    (tmp_path / answer.name).write_bytes(answer.content)
    np.testing.assert_array_equal(open_volume(tmp_path / answer.name)[0], found)
    assert found.any() and not np.array_equal(found, received(client, uid, tmp_path)[0])


def test_a_label_is_stored_in_the_archive_and_retrains_the_model(
    server: Server, client: Client, orthanc: Orthanc, uid: str, tmp_path: Path
) -> None:
    """The last test of this module: it changes the model."""
    _, affine = received(client, uid, tmp_path)
    nibabel.save(nibabel.Nifti1Image(draw_blocks(0)[1], affine), tmp_path / "label.nii.gz")
    assert client.save_label(uid, tmp_path / "label.nii.gz", NAMES).status == 200
    assert len(orthanc.series("SEG")) == 1
    weights = app_models(server, MODEL) / "model.pt"
    before = weights.read_bytes()
    status, details = client.train(MODEL, max_epochs=1)
    assert status == "DONE" and weights.read_bytes() != before, details
