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
"""Write a job folder for NVFlare: FedAvg of the bundle over monai-nvflare.

    python -m scripts.nvflare_job FOLDER --bundle_root /opt/sam_sp --site north=/data/north --site south=/data/south

The server and every site need the bundle at --bundle_root, in their PYTHONPATH too, with the weights to start from, and
each site its images at the given path. A job has one class. Further options go to every training, for example
--image_size 128.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.checkpoints.base_weights import RANDOM, base_file
from bundle.checkpoints.model_json import PROMPTING
from bundle.checkpoints.network_builder import AUTO
from bundle.core.command_line import parse_with_settings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_text
from bundle.core.setting_forms import option, whole
from bundle.training.federated import NOT_EXCHANGED

# Settings of the network and its prompts, which the server and the resulting model need.
NETWORK = ("sam", "image_size", "input", "exclusive", "trainable", "lora_rank", "lora_alpha", *PROMPTING)
# As train.json and federated.json have them.
DEFAULTS = {"sam": "vit_tiny", "exclusive": True, "trainable": "lora"}
CONFIGS = ["configs/train.json", "configs/federated.json"]
SERVER = "server"
SERVER_CONFIG = Path(f"app_{SERVER}", "config", "config_fed_server.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the job folder and print how to run it."""
    options, settings = parse(arguments)
    sites = by_name(options.site)
    write_job(options.folder, options.bundle_root, sites, options.rounds, options.local_epochs, settings)
    names = ",".join(sites)
    print(
        f"Wrote {options.folder}. To try it with all sites on this machine:\n"
        f"  PYTHONPATH={options.bundle_root} nvflare simulator {options.folder} -w {options.folder}_run -c {names} "
        f"-t {len(sites)}"
    )


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line: options, and settings of the trainings."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.nvflare_job",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what is written")
    parser.add_argument("--bundle_root", required=True, help="absolute path of the bundle, the same everywhere")
    parser.add_argument("--site", type=_site, action="append", required=True, help="NAME=DATASET_DIR, once for each")
    parser.add_argument("--rounds", type=option(whole(1)), default=10, help="of averaging (%(default)s)")
    parser.add_argument(
        "--local_epochs", type=option(whole(1)), default=1, help="of each site in a round (%(default)s)"
    )
    return parse_with_settings(parser, arguments)


def _site(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=DATASET_DIR")
    return name, folder


def by_name(sites: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the folder of each site by name; `BundleError` for a repeated name or that of the server."""
    names = [name for name, _ in sites]
    if SERVER in names:
        raise BundleError(f"site is '{SERVER}', which is the name of the server: expected another.")
    for name in names:
        if names.count(name) > 1:
            raise BundleError(f"site is '{name}' {names.count(name)} times, expected a name of its own for each.")
    return dict(sites)


def write_job(
    folder: Path,
    bundle_root: str,
    sites: Mapping[str, str],
    rounds: int,
    local_epochs: int,
    settings: Mapping[str, Any],
) -> None:
    """Write ``meta.json``, an app for the server and one for each site.

    Raises:
        BundleError: a path is not absolute, or a setting is not possible in a job.
    """
    _require_possible({**settings, "bundle_root": bundle_root})
    apps = {f"app_{name}": [name] for name in (SERVER, *sites)}
    _write(folder / "meta.json", {"name": "sam_sp", "min_clients": len(sites), "resource_spec": {}, "deploy_map": apps})
    server = server_config(bundle_root, len(sites), rounds, settings)
    _write(folder / SERVER_CONFIG, server)
    for name, dataset_dir in sites.items():
        site = site_config(bundle_root, dataset_dir, rounds, local_epochs, settings)
        _write(folder / f"app_{name}" / "config" / "config_fed_client.json", site)


def _require_possible(settings: Mapping[str, Any]) -> None:
    for key in ("bundle_root", "sam_checkpoint", "weights"):
        value = settings.get(key)
        if value == RANDOM:
            raise BundleError(f"{key} is '{RANDOM}', but server and sites must start from the same weights: name them.")
        if value is not None and not Path(value).is_absolute():
            raise BundleError(f"{key} is '{value}', expected an absolute path: a job runs in its own folder.")
    for key, instead in (("epochs", "--rounds and --local_epochs"), ("dataset_dir", "--site")):
        if key in settings:
            raise BundleError(f"{key} is {settings[key]!r}, but in a job it follows from {instead}: leave it out.")
    for key, expected in (("num_classes", (None, 1)), ("labels", (None,))):
        if settings.get(key) not in expected:
            raise BundleError(f"{key} is {settings[key]!r}, but a job is of one class: leave it out.")


def server_config(bundle_root: str, sites: int, rounds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of NVFlare's own FedAvg of weight differences, with the common starting weights."""
    network = {**DEFAULTS, **{key: settings[key] for key in NETWORK if settings.get(key, AUTO) != AUTO}}
    base = f"{bundle_root}/models/base/{base_file(network['sam'])}"
    network["checkpoint"] = settings.get("weights") or settings.get("sam_checkpoint") or base
    return {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [
            {
                "id": "persistor",
                "path": "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
                "args": {
                    "model": {"path": "bundle.sam_sp.network.SamSP", "args": network},
                    "exclude_vars": NOT_EXCHANGED,
                },
            },
            {
                "id": "shareable_generator",
                "path": "nvflare.app_common.shareablegenerators.full_model_shareable_generator."
                "FullModelShareableGenerator",
                "args": {},
            },
            {
                "id": "aggregator",
                "path": "nvflare.app_common.aggregators.intime_accumulate_model_aggregator."
                "InTimeAccumulateWeightedAggregator",
                "args": {"expected_data_kind": "WEIGHT_DIFF"},
            },
        ],
        "workflows": [
            {
                "id": "scatter_and_gather",
                "path": "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather",
                "args": {
                    "min_clients": sites,
                    "num_rounds": rounds,
                    "start_round": 0,
                    "wait_time_after_min_received": 0,
                    "aggregator_id": "aggregator",
                    "persistor_id": "persistor",
                    "shareable_generator_id": "shareable_generator",
                    "train_task_name": "train",
                    "train_timeout": 0,
                },
            }
        ],
    }


def network_arguments(job: Path) -> dict[str, Any]:
    """Return the arguments of `SamSP` in a job folder that `write_job` wrote.

    Raises:
        BundleError: the folder is not a job folder.
    """
    path = job / SERVER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        (persistor,) = (item for item in config["components"] if item["id"] == "persistor")
        return persistor["args"]["model"]["args"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} is not there or not of a job, expected the folder that scripts.nvflare_job wrote."
        ) from error


def site_config(
    bundle_root: str, dataset_dir: str, rounds: int, local_epochs: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config of MONAI's client, which validates the server's model with the bundle and then trains it."""
    shared = {**settings, "dataset_dir": dataset_dir}
    return {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
        "executors": [
            {
                "tasks": ["train"],
                "executor": {
                    "id": "executor",
                    "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
                    "args": {"client_algo_id": "client_algo", "key_metric": "val_dice"},
                },
            }
        ],
        "components": [
            {
                "id": "client_algo",
                "path": "monai.fl.client.MonaiAlgo",
                "args": {
                    "bundle_root": bundle_root,
                    "local_epochs": local_epochs,
                    "config_train_filename": CONFIGS,
                    "config_evaluate_filename": CONFIGS,
                    "config_filters_filename": "configs/federated_filters.json",
                    "train_kwargs": {**shared, "bundle_root": bundle_root, "epochs": rounds * local_epochs},
                    "eval_kwargs": {**shared, "bundle_root": bundle_root},
                },
            }
        ],
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    show_errors_plainly()
    main()
