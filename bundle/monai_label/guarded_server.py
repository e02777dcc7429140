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
"""The server's application behind its guard, for uvicorn: ``guarded_server:app`` in the app folder.

`app_folder` copies this file there, beside `bundle.monai_label.guard`. Only the server imports it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from guard import Guard
from monailabel.app import app as server
from monailabel.config import settings

# What a client sends lies here, beside nothing else, so that the guard knows it from a path in a request.
UPLOADS = Path(settings.MONAI_LABEL_APP_DIR) / "uploads"

UPLOADS.mkdir(mode=0o700, parents=True, exist_ok=True)
tempfile.tempdir = str(UPLOADS)
app = Guard(server, **json.loads(os.environ["SAM_SP_GUARD"]))
