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
"""Ask a DICOMweb server for a series before a MONAI Label server is started that would wait for it."""

from __future__ import annotations

import os
import re

from bundle.core.errors import BundleError

USERNAME, PASSWORD = "MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD"
PREFIX = "MONAI_LABEL_QIDO_PREFIX"
# Seconds until a connection stands, and until the answer begins.
TIMEOUT = (5.0, 30.0)
# The server takes its credentials for this service from Google's own tools.
GOOGLE = "googleapis.com"
EXPECTED = "expected the address of a DICOMweb server, such as http://127.0.0.1:8042/dicom-web"


def require_dicomweb(url: str, modality: str) -> None:
    """Send the query that the MONAI Label server sends first, with its own client and credentials, for one series.

    Args:
        url: address of the DICOMweb server.
        modality: of the series to ask for.

    Raises:
        BundleError: the address is none, nobody answers, or the answer is no list of series.
    """
    import requests  # the client of the MONAI Label server

    if not url.startswith(("http://", "https://")):
        raise BundleError(f"--dicomweb is '{url}', which is no address; {EXPECTED}.")
    if GOOGLE in url:
        return
    prefix = os.environ.get(PREFIX)
    address = "/".join(part.strip("/") for part in (url.strip(), prefix, "series") if part)
    user, password = os.environ.get(USERNAME, ""), os.environ.get(PASSWORD, "")
    try:
        answer = requests.get(
            address,
            params={"Modality": modality, "limit": "1"},
            headers={"Accept": "application/dicom+json, application/json"},
            auth=(user, password) if user and password else None,
            timeout=TIMEOUT,
        )
    except requests.exceptions.SSLError as error:
        raise BundleError(
            f"{address} does not answer over TLS as this machine trusts it ({_reason(error)}): name the certificate of "
            "its authority in REQUESTS_CA_BUNDLE, or use http://."
        ) from error
    except requests.exceptions.Timeout as error:
        raise BundleError(f"{address} did not answer within {max(TIMEOUT):.0f} s; {EXPECTED}.") from error
    except (requests.exceptions.RequestException, ValueError) as error:
        raise BundleError(f"{address} does not answer ({_reason(error)}); {EXPECTED}.") from error
    status = f"{answer.status_code} {answer.reason}".strip()
    if answer.status_code in (401, 403):
        given = f"those of the user '{user}' are refused" if user and password else "there are none"
        raise BundleError(
            f"{address} answers {status}, for it wants credentials and {given}: set {USERNAME} and {PASSWORD}."
        )
    if answer.status_code == 204:
        return  # no series of this modality yet
    if not answer.ok:
        raise BundleError(f"{address} answers {status}; {EXPECTED}.")
    try:
        series = answer.json()
    except ValueError:
        series = None
    if not isinstance(series, list):
        form = answer.headers.get("Content-Type") or "no type"
        raise BundleError(f"{address} answers {status} with {form} instead of a list of series in JSON; {EXPECTED}.")


def _reason(error: BaseException) -> str:
    """Return the innermost reason of an error of requests, without addresses of objects."""
    while (inner := getattr(error, "reason", None) or next(iter(error.args), None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return re.sub(r"^<?HTTPS?Connection\(.*?\)(?: at 0x\w+)?>?: ", "", str(error)).rstrip(".")
