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
"""The simulated expert and the table of corrections, on procedural images; on real polyps, that corrections help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle.checkpoints.model_files import describe_network, load_weights, write_pair
from bundle.checkpoints.network_builder import build_network
from bundle.core.errors import BundleError
from bundle.inference import uncertainty
from bundle.sam_sp.network import SamSP
from bundle.sam_sp.simulated_user import corrective_click
from scripts.experiments import corrections as interaction_table
from scripts.experiments.polyps.corrected import dice, predicted_mask, read_sample
from scripts.experiments.polyps.report import fill, read_json_files
from tests.conftest import RECORDS, ROOT, SHARED_DATA
from tests.workflows.commands import EVALUATE, command

BASE = ROOT / "models" / "base" / "sam_vit_tiny.pt"


def test_an_expert_clicks_into_the_middle_of_the_largest_error() -> None:
    wanted = np.zeros((40, 60), dtype=bool)
    wanted[10:21, 20:41] = True
    assert corrective_click(wanted, wanted) is None
    assert corrective_click(np.zeros_like(wanted), wanted) in {(x, 15, 1) for x in range(25, 36)}
    shown = wanted.copy()
    shown[10:21, 20:24] = False  # misses 44 pixels, and a block of 49 elsewhere
    shown[31:38, 50:57] = True
    assert corrective_click(shown, wanted) == (53, 34, 0)
    shown[31:38, 50:57] = False
    assert corrective_click(shown, wanted) is not None and corrective_click(shown, wanted)[2] == 1  # type: ignore[index]


def test_images_masks_and_dice_are_those_of_an_evaluation(dataset: Path, root: Path) -> None:
    network = SamSP(checkpoint=str(BASE), image_size=128, trainable="decoder").eval()
    labels = {"0": "background", "1": "polyp"}
    description = describe_network(network, labels=labels, trained_on={})
    pair = write_pair(network.merged_state_dict(), description, root / "model.pt")
    lists = {"test": [{"image": str(path), "label": str(dataset / "masks" / f"{path.stem}.png")}
                      for path in sorted((dataset / "images").iterdir())[:5]]}  # fmt: skip
    (root / "list.json").write_text(json.dumps({"training": lists["test"][:1], "validation": [], **lists}), "utf-8")
    command(
        "evaluating", EVALUATE, root, dataset_dir=str(root / "list.json"), weights=str(pair), panels=0, num_workers=0,
        device="cpu", output_dir=str(root / "out"),
    )  # fmt: skip
    lines = (root / "out" / "val_dice_raw.csv").read_text(encoding="utf-8").strip().splitlines()[1:]
    expected = [float(line.split(",")[-1]) for line in lines]
    found = []
    with torch.inference_mode():
        for record in lists["test"]:
            sample = read_sample(record, 128)
            found.append(
                dice(predicted_mask(network, network.segment(sample.image).refined, sample.label.shape), sample.label)
            )
    assert found == pytest.approx(expected, abs=2e-3)


def test_table_from_the_command(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stems = sorted(path.stem for path in (dataset / "images").iterdir())
    (tmp_path / "stems.txt").write_text("\n".join(stems), encoding="utf-8")
    document, records = tmp_path / "corrections.md", tmp_path / "records"
    document.write_text(
        "# A\n<!-- table: corrections -->\n<!-- end -->\n<!-- table: scores -->\n<!-- end -->\n", "utf-8"
    )
    words = ["--weights", str(BASE), "--name", "base", "--kvasir", str(dataset), "--split", str(tmp_path / "stems.txt"),
             "--images", "4", "--records", str(records), "--document", str(document)]  # fmt: skip
    interaction_table.main(words)
    cell = json.loads((records / "base.json").read_text(encoding="utf-8"))
    assert cell["images"] == len(cell["dice"]["y1"]) == 4 and cell["pretrained_on"].startswith("procedural")
    assert list(cell["dice"]) == [
        "y1", "1 click", "2 clicks", "3 clicks", "box", "box + 1 click", "box + 2 clicks", "box + 3 clicks",
    ]  # fmt: skip
    assert np.mean(cell["dice"]["box"]) > np.mean(cell["dice"]["y1"]) + 0.1  # it was pre-trained on boxes
    text = document.read_text(encoding="utf-8")
    assert "| base | 3 clicks | " in text and "| doubt | " in text and "| base | y1 |" in capsys.readouterr().out
    interaction_table.main(words[4:])  # the tables alone
    assert document.read_text(encoding="utf-8") == text
    (tmp_path / "stems.txt").write_text("nobody", encoding="utf-8")
    with pytest.raises(BundleError, match=r"names nobody and 0 more that are not in"):
        interaction_table.main(words)


def test_a_rank_correlation_has_its_sign() -> None:
    dice_of = np.linspace(0, 1, 40)
    found = interaction_table.rank_correlation((1 - dice_of).tolist(), dice_of.tolist())
    assert (found.mean, found.low, found.high) == pytest.approx((-1, -1, -1))
    assert interaction_table.rank_correlation([0.5] * 40, dice_of.tolist()).mean == 0


@pytest.fixture(scope="module")
def measured(kvasir: Path) -> dict[str, Any]:
    """What is published in models/ does with the first 40 of PraNet's test images of Kvasir-SEG."""
    weights = str(ROOT / "models" / "model.pt")
    network = load_weights(build_network(weights), weights).eval()
    records = interaction_table.chosen_records(kvasir, SHARED_DATA / "splits" / "pranet_kvasir_test.txt", 40)
    return interaction_table.measure(network, records)


@pytest.mark.slow
def test_on_real_polyps_an_experts_box_does_no_harm_and_three_clicks_help(measured: dict[str, Any]) -> None:
    found = {name: np.mean(values) for name, values in measured["dice"].items()}
    assert found["box"] >= found["y1"]
    assert found["3 clicks"] > found["y1"]


@pytest.mark.slow
def test_on_real_polyps_a_high_score_finds_bad_masks(measured: dict[str, Any]) -> None:
    found = interaction_table.rank_correlation(measured["scores"][uncertainty.DEFAULT], measured["dice"]["y1"])
    assert found.high < -0.3


def test_the_document_shows_the_files() -> None:
    text = (ROOT / "docs" / "results" / "corrections.md").read_text(encoding="utf-8")
    cells = read_json_files(RECORDS / "corrections")
    tables = {
        "corrections": interaction_table.corrections_table(cells),
        "scores": interaction_table.scores_table(cells),
    }
    assert fill(text, tables) == text
