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
"""Make a model.pt from NVFlare's global model: ``python -m scripts.nvflare_model JOB FL_global_model.pt``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.checkpoints.tensor_files import read_tensors
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.setting_forms import add_debug_option
from bundle.sam.input_kinds import get_kind
from bundle.sam_sp.network import SamSP
from scripts.nvflare_job import network_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge the adapters, write the pair and print how to evaluate it."""
    options = parse(arguments)
    show_errors_plainly(options.debug)
    network = SamSP(**{**network_arguments(options.job), "checkpoint": None})
    network.load_state_dict(read_global_model(options.source))
    description = describe_network(
        network,
        labels={"0": "background", "1": options.label},
        intensity=get_kind(network.input).intensity(),
    )
    pair = write_pair(network.merged_state_dict(), description, options.output)
    print(f"Wrote {pair} and {pair.with_suffix('.json')}: evaluate it with --weights {pair}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.nvflare_model", description=__doc__)
    parser.add_argument("job", type=Path, help="folder that scripts.nvflare_job wrote")
    parser.add_argument("source", type=Path, help="FL_global_model.pt of the server")
    parser.add_argument("--output", type=Path, default=Path("output/federated_model/model.pt"), help="(%(default)s)")
    parser.add_argument("--label", default="foreground", help="name of the class (%(default)s)")
    add_debug_option(parser)
    return parser.parse_args(arguments)


def read_global_model(path: Path) -> Mapping[str, Any]:
    """Read the weights in NVFlare's file.

    Raises:
        BundleError: there is no such file, or it is another.
    """
    if not path.is_file():
        raise BundleError(f"{path} is not a file; expected the FL_global_model.pt of NVFlare's server.")
    content = read_tensors(path)
    if not isinstance(content, Mapping) or "model" not in content:
        raise BundleError(f"{path} has no 'model'; expected the FL_global_model.pt of NVFlare's server.")
    return content["model"]


if __name__ == "__main__":
    show_errors_plainly()
    main()
