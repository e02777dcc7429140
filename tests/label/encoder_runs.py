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
"""In the server's environment, what its app does with requests: prints how many images the encoder saw in each.

.venv-label/bin/python -m tests.label.encoder_runs APP MODEL '[{"image": PATH, "foreground": [[1, 2]]}, ...]'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

app, model, requests = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, str(app))

from main import for_clicks  # noqa: E402  the app's own, with what the server brings
from monailabel.tasks.infer.bundle import BundleInferTask  # noqa: E402

task = BundleInferTask(str(app / "model" / model), {})
clicks = for_clicks(model, task)
encoder = task._get_network("cpu", None).image_encoder
seen: list[int] = []
encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
runs = []
for request in requests:
    used = clicks if request.keys() & {"foreground", "background"} else task
    used({"device": "cpu", "result_write_to_file": False, **request})
    runs.append(sum(seen))
    seen.clear()
print("\n" + json.dumps(runs))
