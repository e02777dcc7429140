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
"""The two forms in which a NIfTI header says where its voxels lie, the sform and the qform, each with a code.

Readers differ in which they take: nibabel and MONAI the sform where it has a code; ITK and 3D Slicer the sform where
its code is 1 or the qform has none, and its axes are at right angles; others the qform. So a mask of a NIfTI file gets
both forms of that file, with their codes: every reader then puts it where it puts the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bundle.data.places import are_close

# Millimeters of a unit by its number in `xyzt_units`; files without a unit are in millimeters.
UNITS = {1: 1000.0, 3: 0.001}
UNIT_BITS = 7
FORM_FIELDS = (
    "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def read_affine(header: Any) -> np.ndarray:
    """Return the affine (4, 4) of a NIfTI header that nibabel and MONAI use, in millimeters whatever its unit."""
    return _in_millimeters(header.get_best_affine(), header)


def read_forms(header: Any) -> dict[str, np.ndarray]:
    """Return the affines (4, 4) in millimeters of the forms with a code: "sform", "qform", both, or none."""
    from nibabel.spatialimages import HeaderDataError

    forms = {}
    for name, read in (("sform", header.get_sform), ("qform", header.get_qform)):
        try:
            affine = read(coded=True)[0]
        except HeaderDataError:  # a quaternion that is none
            continue
        if affine is not None:
            forms[name] = _in_millimeters(affine, header)
    return forms


def copy_forms(source: Any, target: Any) -> None:
    """Copy both forms, their codes, the spacing and its unit from a NIfTI header into another."""
    for field in FORM_FIELDS:
        target[field] = source[field]
    target["pixdim"][:4] = source["pixdim"][:4]  # the first says on which hand the axes of the qform are
    target["xyzt_units"] = (int(target["xyzt_units"]) & ~UNIT_BITS) | (int(source["xyzt_units"]) & UNIT_BITS)


def set_forms(image: Any, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Set both forms of a nibabel image (shape X, Y, Z first) to an affine in millimeters, with code 1.

    A qform holds axes at right angles alone. Where they are not, as in CT with a tilted gantry, it gets code 0: ITK
    then refuses the file instead of putting the mask in another place.
    """
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    if not are_close(image.header.get_qform(), affine, shape[:3]):
        image.set_qform(None, code=0)


def _in_millimeters(affine: np.ndarray, header: Any) -> np.ndarray:
    factor = UNITS.get(int(header["xyzt_units"]) & UNIT_BITS, 1.0)
    return np.diag([factor] * 3 + [1.0]) @ np.asarray(affine, dtype=np.float64)
