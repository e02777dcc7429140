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
"""Uses an unzipped bundle as a stranger does; `test_zip` runs it in a process of its own, from another directory.

    python stranger.py BUNDLE DATASET OTHER

Trains, evaluates and infers as the model zoo tests its bundles, exports, and runs another bundle before and after.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow, run

ROOT, DATASET, OTHER = (Path(word) for word in sys.argv[1:4])
FILES = {
    "meta_file": str(ROOT / "configs" / "metadata.json"),
    "logging_file": str(ROOT / "configs" / "logging.conf"),
    "bundle_root": str(ROOT),
    "dataset_dir": str(DATASET),
    "device": "cpu",
    "num_workers": 0,
}


def configs(*names: str) -> list[str]:
    return [str(ROOT / "configs" / name) for name in names]


def check_workflow(workflow_type: str, *names: str, **override: Any) -> None:
    """What the zoo's unit tests do; the properties after the run, which puts the bundle on the path."""
    workflow = ConfigWorkflow(config_file=configs(*names), workflow_type=workflow_type, **FILES, **override)
    workflow.initialize()
    workflow.run()
    assert workflow.check_properties() == []
    workflow.finalize()


def run_other() -> None:
    """A bundle with a package called `scripts`, as most have one."""
    run(run_id="run", config_file=str(OTHER / "configs" / "inference.json"), bundle_root=str(OTHER))


if __name__ == "__main__":
    run_other()
    check_workflow("train", "train.json", image_size=64, epochs=1, batch_size=4)
    check_workflow("train", "train.json", "evaluate.json")
    check_workflow("infer", "inference.json")
    run("exporting", config_file=configs("inference.json", "export.json"), format="torchscript", **FILES)
    run_other()
    import bundle

    assert Path(bundle.__file__).parent == ROOT / "bundle", bundle.__file__
    print("a stranger is content")
