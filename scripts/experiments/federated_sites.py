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
"""Simulate three sites with real polyps: FedAvg against each site alone, on one common test.

    python -m scripts.experiments.federated_sites

Sites are Kvasir-SEG and two groups of the video sequences of CVC-ClinicDB. Each drives the bundle through MONAI's
MonaiAlgo; between rounds they exchange only adapters, prompt encoder and mask decoder. A site alone trains as many
epochs. The model of the last round is tested, without any selection. After a stop the same command continues with the
next round. Further options go to every training, for example --image_size 128.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import run
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

from bundle.checkpoints.model_files import describe_network, write_pair
from bundle.core.command_line import parse_with_settings
from bundle.core.errors import BundleError, show_errors_plainly
from bundle.core.files import write_atomically
from bundle.data.datalists import stems_sha256
from bundle.evaluation.bootstrap import interval, paired_interval
from bundle.sam.input_kinds import get_kind
from bundle.sam_sp.network import SamSP
from bundle.training.federated import exchanged_bytes, exchanged_weights, federated_average
from scripts.benchmarks.measure import machine
from scripts.experiments.polyps.cells import ROOT, write_cell
from scripts.experiments.polyps.data import Polyps, lay_out, sequences_of, write_list
from scripts.experiments.polyps.report import in_markdown, with_interval

RECORDS = ROOT / "scripts" / "experiments" / "records" / "federated_sites.json"
SHARED = ROOT.parent / "shared" / "data"
SETTINGS = {"batch_size": 4, "cache": 2000, "num_workers": 0, "device": "cpu"}
TOGETHER = "together"
STATE = "rounds.pt"
Sites = Mapping[str, Sequence[str]]  # stems to train on


@dataclass(frozen=True)
class Plan:
    """The plan that all federations share.

    Attributes:
        dataset: folder with images and masks.
        test: list file of the common test.
        work: folder of the trainings.
        rounds: rounds of each federation.
        local_epochs: epochs of each site between two rounds.
        settings: settings of configs/train.json for every site.
    """

    dataset: Path
    test: Path
    work: Path
    rounds: int
    local_epochs: int
    settings: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the models that are missing, test, write the JSON file and print the table."""
    options, further = parse(arguments)
    polyps = lay_out(options.data, options.kvasir, options.clinicdb, options.splits)
    sites = three_sites(polyps, options.splits)
    test = polyps.folder / "test.txt"
    plan = Plan(polyps.folder, test, options.work, options.rounds, options.local_epochs, {**SETTINGS, **further})
    federations = {TOGETHER: sites, **{name: {name: stems} for name, stems in sites.items()}}
    result: dict[str, Any] = {
        "command": "python -m scripts.experiments.federated_sites "
        f"--rounds {plan.rounds} --local_epochs {plan.local_epochs}",
        "machine": machine(),
        "knobs": dict(plan.settings),
        "images": {name: len(stems) for name, stems in sites.items()},
        "models": {},
    }
    for name, members in federations.items():
        trained = federate(name, members, plan)
        dice = test_scores(name, plan)
        result["bytes_per_round"] = trained["bytes_per_round"]
        by_test = {kind: [dice[stem] for stem in stems] for kind, stems in polyps.tests.items()}
        minutes = round(trained["seconds"] / 60, 1)
        result["models"][name] = {"minutes": minutes, "dice": by_test}
        write_cell(options.records, result)
    print(table(result))


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line: options, and settings of the trainings."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.federated_sites",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=6, help="of averaging (%(default)s)")
    parser.add_argument("--local_epochs", type=int, default=1, help="of each site in a round (%(default)s)")
    parser.add_argument("--kvasir", type=Path, default=SHARED / "kvasir-seg", help="Kvasir-SEG: images and masks")
    parser.add_argument("--clinicdb", type=Path, default=SHARED / "cvc-clinicdb", help="CVC-ClinicDB: images and masks")
    parser.add_argument("--splits", type=Path, default=SHARED / "splits", help="PraNet's lists and the sequences")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "polyps", help="links to both (data/polyps)")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "federated", help="trainings (output/federated)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="JSON file of the figures (%(default)s)")
    return parse_with_settings(parser, arguments)


def three_sites(polyps: Polyps, splits: Path) -> dict[str, list[str]]:
    """Return the stems of three sites: Kvasir-SEG, and alternating training sequences of CVC-ClinicDB in two groups."""
    sequences = sequences_of(splits / "clinicdb_sequences.csv")
    frames = [stem for stem in polyps.train if stem in sequences]
    numbers = sorted({int(sequences[stem]) for stem in frames})
    return {
        "kvasir": [stem for stem in polyps.train if stem not in sequences],
        "clinicdb_a": [stem for stem in frames if int(sequences[stem]) in numbers[::2]],
        "clinicdb_b": [stem for stem in frames if int(sequences[stem]) in numbers[1::2]],
    }


def federate(name: str, sites: Sites, plan: Plan) -> dict[str, Any]:
    """Train the sites in rounds and write ``work/NAME/model.pt``; go on where an earlier call stopped.

    Returns:
        "seconds" of training so far and "bytes_per_round" that each site receives, and sends.

    Raises:
        BundleError: the earlier call was with other sites, settings or ``local_epochs``.
    """
    folder = plan.work / name
    states = read_states(folder / STATE, made_with(sites, plan))
    if states["round"] < plan.rounds or not (folder / "model.pt").is_file():
        states, network = run_rounds(name, sites, plan, states)
        write_model(network, sites, plan, folder)
    return {key: states[key] for key in ("seconds", "bytes_per_round")}


def made_with(sites: Sites, plan: Plan) -> dict[str, Any]:
    """Return the values that must be the same when a federation is resumed."""
    described = {name: f"{len(stems)} images, {list_sha256(stems)[:12]}" for name, stems in sites.items()}
    return {"local_epochs": plan.local_epochs, "knobs": dict(plan.settings), "sites": described}


def list_sha256(stems: Sequence[str]) -> str:
    """Return the sha256 of the sorted stems."""
    return stems_sha256([{"image": stem} for stem in stems])


def read_states(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Read the states of an earlier call, or return the initial ones.

    Raises:
        BundleError: the earlier call had other values of `made_with`.
    """
    if not path.is_file():
        return {"round": 0, "seconds": 0.0, "sites": {}, "made_with": expected}
    states = torch.load(path, weights_only=True)
    earlier = states.get("made_with", {})
    for key, value in expected.items():
        if earlier.get(key) != value:
            raise BundleError(
                f"{path} was made with {key} {earlier.get(key)}, this run has {value}: name another --work, or remove "
                f"{path.parent}."
            )
    return states


def run_rounds(name: str, sites: Sites, plan: Plan, states: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Run the rounds that are left, and write ``work/NAME/rounds.pt`` after each.

    Returns:
        The states after the last round, and the network with its weights.
    """
    folder = plan.work / name
    members = {site: start_site(site, stems, folder, plan, states["sites"].get(site)) for site, stems in sites.items()}
    network: Any = next(iter(members.values())).trainer.network  # type: ignore[union-attr]
    weights = states.get("weights") or exchanged_weights(network)
    while states["round"] < plan.rounds:
        begun = time.monotonic()
        answers = [one_round(member, weights) for member in members.values()]
        weights = federated_average(weights, [difference for difference, _ in answers], [n for _, n in answers])
        states = {
            "round": states["round"] + 1,
            "seconds": states["seconds"] + time.monotonic() - begun,
            "bytes_per_round": exchanged_bytes(network),
            "weights": weights,
            "sites": {site: state_of(member) for site, member in members.items()},
            "made_with": states["made_with"],
        }
        write_atomically(folder / STATE, partial(torch.save, states))
        left = states["seconds"] / states["round"] * (plan.rounds - states["round"])
        print(f"{name}: round {states['round']} of {plan.rounds}; about {left / 60:.1f} minutes to go", flush=True)
    network.load_state_dict({**network.state_dict(), **weights})
    return states, network


def write_model(network: SamSP, sites: Sites, plan: Plan, folder: Path) -> None:
    """Write the pair ``model.pt``, and ``train.txt`` with the images of all sites."""
    stems = [stem for members in sites.values() for stem in members]
    description = describe_network(
        network,
        labels={"0": "background", "1": "polyp"},
        intensity=get_kind(network.input).intensity(),
        trained_on={"train_images": len(stems), "train_stems_sha256": list_sha256(stems), "sites": len(sites)},
        rounds=plan.rounds,
        local_epochs=plan.local_epochs,
    )
    write_pair(network.merged_state_dict(), description, folder / "model.pt")
    write_list(folder / "train.txt", stems)


def start_site(site: str, stems: Sequence[str], folder: Path, plan: Plan, state: Mapping[str, Any] | None) -> MonaiAlgo:
    """Return a site with its own data and optimizer, as it was after its last round."""
    write_list(folder / f"{site}.txt", list(stems))
    settings = {
        **plan.settings,
        "bundle_root": str(ROOT),
        "dataset_dir": str(plan.dataset),
        "split": {"train": str(folder / f"{site}.txt"), "validation": 0, "test": str(plan.test)},
        "output_dir": str(folder / site),
        "epochs": plan.rounds * plan.local_epochs,
    }
    member = MonaiAlgo(
        bundle_root=str(ROOT),
        local_epochs=plan.local_epochs,
        config_train_filename=["configs/train.json", "configs/federated.json"],
        config_evaluate_filename=None,
        config_filters_filename="configs/federated_filters.json",
        train_kwargs=settings,
    )
    member.initialize({ExtraItems.CLIENT_NAME: site})
    for name, item in parts_of(member).items() if state else ():
        item.load_state_dict(state[name])  # type: ignore[index]
    return member


def parts_of(member: MonaiAlgo) -> dict[str, Any]:
    """Return the objects whose state a site keeps from round to round, besides the weights."""
    workflow: Any = member.train_workflow
    trainer: Any = member.trainer
    scheduler = workflow.parser.get_parsed_content("lr_scheduler")
    return {"optimizer": trainer.optimizer, "lr_scheduler": scheduler, "trainer": trainer}


def state_of(member: MonaiAlgo) -> dict[str, Any]:
    """Return the states of these objects."""
    return {name: item.state_dict() for name, item in parts_of(member).items()}


def one_round(member: MonaiAlgo, weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """Train a site for its local epochs, and return the differences of its weights and its number of steps."""
    member.train(ExchangeObject(weights={name: value.clone() for name, value in weights.items()}))
    answer = member.get_weights()
    return answer.weights, answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]


def test_scores(name: str, plan: Plan) -> dict[str, float]:
    """Return the Dice of y1 of each image of the common test."""
    folder = plan.work / name
    configs = [str(ROOT / "configs" / file) for file in ("train.json", "evaluate.json")]
    split = {"train": str(folder / "train.txt"), "validation": 0, "test": str(plan.test)}
    data: dict[str, Any] = {"dataset_dir": str(plan.dataset), "split": split}
    run(
        run_id="evaluating", config_file=configs, bundle_root=str(ROOT), **data, weights=str(folder / "model.pt"),
        output_dir=str(folder / "test"), panels=0, num_workers=0, device=str(plan.settings["device"]),
    )  # fmt: skip
    with open(folder / "test" / "val_dice_raw.csv", encoding="utf-8", newline="") as file:
        return {Path(image).stem: float(dice) for image, dice, *_ in list(csv.reader(file))[1:]}


def table(result: Mapping[str, Any]) -> str:
    """Return the mean Dice of each model on each test and the gain of the federation over each site, in Markdown."""
    dice = {name: model["dice"] for name, model in result["models"].items()}
    tests = list(dice[TOGETHER])
    lines = [
        [name, *(with_interval(interval(np.array([values[test]]))) for test in tests)] for name, values in dice.items()
    ]
    for name in (name for name in dice if name != TOGETHER):
        pairs = [(np.array([dice[TOGETHER][test]]), np.array([dice[name][test]])) for test in tests]
        lines.append([f"{TOGETHER} - {name}", *(with_interval(paired_interval(*pair), "+") for pair in pairs)])
    return in_markdown(["trained on", *tests], lines)


if __name__ == "__main__":
    show_errors_plainly()
    main()
