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
"""The check that every command begins with: unknown names, and values of the wrong kind."""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.core import setting_names
from bundle.core.command_line import parse_with_settings
from bundle.core.errors import BundleError, find_bundle_error
from bundle.core.setting_check import read_settings, require_settings_of
from bundle.core.setting_forms import Form
from bundle.core.setting_rules import RULES
from tests.conftest import ROOT
from tests.test_architecture import SETTINGS

FOLDER = ROOT / "configs"
# What each command is made of, and what tests/settings.json does not record.
COMMANDS: dict[str, list[str]] = {
    **{name: command["configs"] for name, command in SETTINGS.items()},
    "merging": ["merge.json"],
    "evaluating prompts": ["pretrain.json", "evaluate_prompts.json"],
    "U-Net": ["train.json", "unet.json"],
    "measuring": ["train.json", "evaluate.json", "measure.json"],
    "ViT-B": ["train.json", "vit_b.json"],
    "LiteMedSAM": ["train.json", "lite_medsam.json"],
    "a site of a federation": ["train.json", "federated.json"],
    "several processes, training": ["train.json", "multi_gpu_train.json"],
    "several processes, volumes": ["train.json", "volume.json", "multi_gpu_train.json"],
    "several processes, evaluating": ["train.json", "evaluate.json", "multi_gpu_evaluate.json"],
    "several processes, inferring": ["inference.json", "multi_gpu_inference.json"],
    "exporting volumes": ["inference.json", "volume.json", "export.json"],
    "training in MONAI Label": ["train.json", "volume.json", "label_train.json"],
}
TRAIN, INFER = ["train.json"], ["inference.json"]
UNKNOWN = "but this command has no such setting"
PART = "but that is a part which the config builds, no setting"


def check(configs: Sequence[str | Path], **override: Any) -> ConfigParser:
    """Do what the first expressions of a command do, and return the config that they leave."""
    files = [str(FOLDER / config) for config in configs]
    workflow = ConfigWorkflow(
        files, meta_file=str(FOLDER / "metadata.json"), logging_file=False, workflow_type=None, **override
    )
    workflow.parser["run"] = ["$setting_check.check_settings()"]
    workflow.initialize()
    workflow.run()
    return workflow.parser


def refused(configs: Sequence[str | Path], **override: Any) -> str:
    """Return the sentence that a command ends with."""
    with pytest.raises(Exception) as caught:
        check(configs, **override)
    error = find_bundle_error(caught.value)
    assert error is not None, caught.value
    return str(error)


def is_one_sentence(text: str) -> bool:
    return "\n" not in text and text.endswith((".", "?")) and not re.search(r"[.?!] [A-Z]", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_configs_of_a_command_pass(command: str) -> None:
    check(COMMANDS[command])


def test_every_command_checks_its_settings_first() -> None:
    for path in FOLDER.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "run" in content:
            assert content["run"][:2] == ["$errors.show_errors_plainly(@debug)", "$setting_check.check_settings()"], (
                path
            )
        if "initialize" in content:  # MonaiAlgo runs nothing else
            assert content["initialize"][0] == "$setting_check.check_settings()", path
    others = {"metadata", "federated_filters"}
    assert {path.stem for path in FOLDER.glob("*.json")} - others == set(setting_names.CONFIGS)


def numbers(least: float | None = None, most: float | None = None) -> list[Any]:
    beyond = [] if least is None else [least - 1, str(least - 1)]
    return ["abc", "", True, [1], {"a": 1}, math.nan, math.inf, "nan", *beyond, *([] if most is None else [most + 1])]


WRONG: dict[str, list[Any]] = {
    "true or false": ["maybe", "", 0, 1, 2.0, [True]],
    "text": [True, 1.5, ["a"], {"a": 1}],
    "the name of a network": [True, 1.5, ["a"]],
    "a path": ["", " ", True, 2.1, ("a", "b"), {"a": 1}],
    "a whole number": ["abc", True, 0.5, [1], math.nan],
    "a number": ["abc", True, [1], math.nan, math.inf],
    "one of": ["abc", "", True, 0, -1, ["a"]],
    "names for": ["polyp", ["a", "b"], {}, {"0": "background"}, {"2": "a"}, {"a": "b"}, {"1": ""}, {"1": ["a"]}, 0],
    "a mapping such": ["all", 0.2, ["a"], 1],
    "a mapping from": ["", True, 1.5, ["a"]],
    "a list of": ["abc", 16, [16], [16, 0], [16, "a"]],
    "{'window'": ["ct", {}, {"window": 5}, {"window": [1]}, {"window": [2, 1]}, {"window": ["a", "b"]},
                  {"percentiles": [0, 101]}, {"other": [1, 2]}, {"window": [0, math.inf]}, [1, 2]],
}  # fmt: skip


def wrong_values(form: Form) -> Iterator[Any]:
    """Yield values that are not of a form, by what it says of itself."""
    yield from next(values for words, values in WRONG.items() if form.words.startswith(words))
    if found := re.match(r"a (?:whole )?number from (\S+)(?: to (\S+))?", form.words):
        yield float(found[1].rstrip(",")) - 1
        yield from [float(found[2]) + 1] if found[2] and found[2] != "below" else []
    if found := re.search(r"(?:above|below) (\S+)", form.words):
        yield float(found[1])
    if found := re.search(r"from 1 on", form.words):
        yield 0


@pytest.mark.parametrize("command", SETTINGS)
def test_every_setting_of_a_command_refuses_wrong_values(command: str) -> None:
    for name, default in SETTINGS[command]["settings"].items():
        read_settings({name: default}, {name: [default]})
        for value in wrong_values(RULES[name].form):
            with pytest.raises(BundleError) as caught:
                read_settings({name: value}, {name: [default]})
            sentence = str(caught.value)
            assert sentence.startswith(f"{name} is ") and ", expected " in sentence and is_one_sentence(sentence)
        if default is not None and name != "seed":
            with pytest.raises(BundleError, match=f"{name} is"):
                read_settings({name: None}, {name: [default]})


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0, expected a whole number from 1 on."),
        ({"learning_rate": "abc"}, "learning_rate is 'abc', expected a number above 0."),
        ({"warmup": 1}, "warmup is 1, expected a number from 0 to below 1."),
        ({"labels": ["a", "b"]}, "labels is ['a', 'b'], expected names for the numbers from 1 on, such as "),
        ({"dataset_dir": 2.1}, "dataset_dir is 2.1, expected a path: quote it twice"),
        ({"device": "tpu"}, "device is 'tpu', expected one of auto, cpu, cuda, mps, or cuda:N."),
        ({"train#trainer#max_epochs": 0}, "train#trainer#max_epochs is 0, expected a whole number from 1 on."),
        ({"init_id": "learning_rate"}, "init_id is 'learning_rate', expected the id of something to run"),
    ],
)
def test_a_wrong_value_is_one_sentence(override: dict[str, Any], sentence: str) -> None:
    found = refused(TRAIN, **override)
    assert found.startswith(sentence) and is_one_sentence(found)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "5", 5), ("epochs", 5.0, 5), ("learning_rate", "1e-3", 0.001), ("publish", "False", False),
        ("distances", "true", True), ("mask_suffix", 1, "1"), ("dataset_dir", 20240101, "20240101"),
        ("dataset_dir", datetime.date(2024, 1, 2), "2024-01-02"), ("output_dir", Path("a") / "b", "a/b"),
        ("epochs", "$2 + 3", "$2 + 3"), ("image_size", None, None), ("seed", None, None), ("seed", -1, -1),
        ("labels", {1: "polyp"}, {1: "polyp"}),
    ],
)  # fmt: skip
def test_settings_get_their_types(name: str, value: Any, expected: Any) -> None:
    parser = check(TRAIN, **{name: value})
    found = parser.ref_resolver.items[name].get_config()
    assert found == parser[name] == expected and type(found) is type(expected)


def test_a_number_that_yaml_takes_for_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("learning_rate: 1e-3\nweight_decay: 1e-2\n", encoding="utf-8")
    parser = check([*TRAIN, tmp_path / "mine.yaml"])
    assert parser.get_parsed_content("learning_rate") == 0.001 and parser.get_parsed_content("weight_decay") == 0.01


@pytest.mark.parametrize("typed", ["20240101", "2024_01_02", "2.10", "a,b", "1e3", "[x]"])
@pytest.mark.parametrize("form", [["--output-dir={}"], ["--output_dir", "{}"]])
def test_a_folder_is_taken_as_it_was_typed(typed: str, form: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fire reads some of these as numbers or as lists."""
    from fire.parser import DefaultParseValue

    monkeypatch.setattr(sys, "argv", ["run", "training", *(word.format(typed) for word in form), "--epochs", "5"])
    assert check(TRAIN, output_dir=DefaultParseValue(typed))["output_dir"] == typed


@pytest.mark.parametrize(
    ("configs", "override", "sentence"),
    [
        (TRAIN, {"epoch": 5}, f"epoch is 5, {UNKNOWN}: did you mean --epochs?"),
        (TRAIN, {"data_dir": "a"}, f"data_dir is 'a', {UNKNOWN}: did you mean --dataset_dir?"),
        (TRAIN, {"panels": 3}, f"panels is 3, {UNKNOWN}: it is one of configs/evaluate.json."),
        (TRAIN, {"meta_fil": "a"}, f"meta_fil is 'a', {UNKNOWN}: did you mean --meta_file?"),
        (TRAIN, {"xyz": "$1e-3"}, f"xyz is '$1e-3', {UNKNOWN}: expected one of those in docs"),
        (TRAIN, {"validate#handler": []}, f"validate#handler is [], {UNKNOWN}: did you mean --validate#handlers?"),
        (TRAIN, {"train#trainer#max_epoch": 3}, "train#trainer#max_epoch is 3, but no argument has that name: did you "
         "mean --train#trainer#max_epochs?"),
        (INFER, {"weight": "a.pt"}, f"weight is 'a.pt', {UNKNOWN}: did you mean --weights?"),
        (INFER, {"box": {}}, f"box is {{}}, {UNKNOWN}: did you mean --boxes?"),
        (INFER, {"dataset": "a"}, f"dataset is 'a', {PART}: did you mean --dataset_dir?"),
        (INFER, {"torch_device": "cpu"}, f"torch_device is 'cpu', {PART}: did you mean --device?"),
        (INFER, {"epochs": 5}, f"epochs is 5, {UNKNOWN}: it is one of configs/train.json."),
    ],
)  # fmt: skip
def test_an_unknown_name_is_one_sentence(configs: list[str], override: dict[str, Any], sentence: str) -> None:
    found = refused(configs, **override)
    assert found.startswith(sentence) and is_one_sentence(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_unknown_name(command: str) -> None:
    assert "output_dirs is 'a', but this command" in refused(COMMANDS[command], output_dirs="a")


def test_a_mistyped_name_in_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"learning_rat": 0.1}', encoding="utf-8")
    assert refused([*TRAIN, tmp_path / "mine.json"]).startswith("learning_rat is 0.1, but this command has no such")


def test_what_changes_something_is_known(tmp_path: Path) -> None:
    """Helpers of a user's own config, run ids and notes; what a tracked run, MONAI Label and MonaiAlgo set."""
    own = {
        "_note": "as in the paper", "_size_": 3, "side": 64, "image_size": "@side",
        "schedule": {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "optimizer": "@optimizer", "gamma": 0.9},
        "lr_scheduler": "@schedule", "validate#additional_metrics#mine": {"_target_": "MeanDice"},
        "only_validate": ["$@validate#evaluator.run()"], "again": "%run", "displayable_configs": {"a": 1},
    }  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(own), encoding="utf-8")
    check([*TRAIN, tmp_path / "own.json"])
    check(TRAIN, tracking_uri="a", experiment_name="b", run_name="c", save_execute_config=False)
    check(
        TRAIN, **{"train#dataset#data": [{"image": "a", "label": "b"}], "validate#dataset#data": [], "device": "cpu",
        "train#trainer#max_epochs": 2, "train#handlers": [{"_target_": "StatsHandler"}], "bundle_root": "a"},
    )  # fmt: skip
    check(TRAIN, **{"optimizer#max_norm": 0.5, "network_def": {"_target_": "torch.nn.Identity"}, "total_steps": 9})
    check(INFER, inferer={"_target_": "SimpleInferer"}, dataset_root="a")


def test_a_config_in_which_nothing_of_the_bundle_is_passes() -> None:
    parser = ConfigParser({"imports": ["$import bundle.core.setting_check as c"], "x": 5, "r": "$c.check_settings()"})
    assert parser.get_parsed_content("r") is None


def constant(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(f"bundle.{module}", fromlist=[name]), name)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("trainable", "sam_sp.trained_parts.TRAINABLE"), ("prompt", "sam_sp.network.PROMPTS"),
        ("prompt_component", "sam_sp.self_prompt.COMPONENTS"), ("distill_direction", "sam_sp.losses.DIRECTIONS"),
        ("attention", "sam.attention_forms.FORMS"), ("format", "export.exporter.FORMATS"),
        ("task", "pretraining.prompted_sam.TASKS"), ("slices_as_rgb", "data.slices.SLICES_AS_RGB"),
    ],
)  # fmt: skip
def test_choices_are_those_of_the_code(name: str, choices: str) -> None:
    assert set(RULES[name].form.words.removeprefix("one of ").split(", ")) == set(constant(choices))


@pytest.mark.parametrize(
    ("configs", "override", "sentence"),
    [
        (["pretrain.json"], {"smallest_crop": 300}, "smallest_crop is 300, expected at most largest_crop, which is"),
        (TRAIN, {"labels": {"1": "a", "2": "b"}, "num_classes": 3}, "num_classes is 3, but there are 2 labels: "),
        (TRAIN, {"prompt": "expert"}, "prompt is 'expert', which takes boxes from labels: only an evaluation has them"),
        (INFER, {"prompt": "expert"}, "prompt is 'expert', which takes boxes from labels: only an evaluation has them"),
        (TRAIN, {"lora_rank": 16}, "lora_rank is 16, but trainable is 'full', which has no adapters: give --trainable"),
        (TRAIN, {"lora_alpha": 8, "trainable": "decoder"}, "lora_alpha is 8, but trainable is 'decoder', which has no"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(configs: list[str], override: dict[str, Any], sentence: str) -> None:
    found = refused(configs, **override)
    assert found.startswith(sentence) and is_one_sentence(found)


def test_settings_that_go_together() -> None:
    check(TRAIN, labels={"0": "background", "1": "a", "2": "b"}, num_classes=2)
    check(TRAIN, lora_rank=16, lora_alpha=8, trainable="lora")
    check(TRAIN, lora_rank=16, trainable="@mine", mine="lora")
    check(["train.json", "evaluate.json"], prompt="expert")


def test_all_problems_are_told_at_once() -> None:
    wrong = {
        "epoch": 5, "lr": 1, "train#trainer#max_epochs": 0, "learning_rate": "fast", "dataset": "a", "device": "tpu",
        "labels": {"1": "a"}, "num_classes": 3, "optimizer#max_nor": 1,
    }  # fmt: skip
    head, *problems = refused(TRAIN, **wrong).splitlines()
    assert head == "8 settings are wrong:"
    assert [problem.strip().removeprefix("- ").partition(" is ")[0] for problem in problems] == [
        "epoch", "lr", "dataset", "optimizer#max_nor", "train#trainer#max_epochs", "learning_rate", "device",
        "num_classes",
    ]  # fmt: skip
    assert all(is_one_sentence(problem) for problem in problems)
    with pytest.raises(BundleError, match=r"^2 settings are wrong:\n    - epoch is 5, .*\n    - warmup is 1, "):
        require_settings_of("train.json", {"epoch": 5, "warmup": 1})


def test_settings_that_a_script_passes_on() -> None:
    import argparse

    def parse(*words: str) -> dict[str, Any]:
        return parse_with_settings(argparse.ArgumentParser(), words)[1]

    assert parse("--epochs", "5", "--learning_rate", "1e-3", "--lora_alpha", "None", "--optimizer#max_norm", "2") == {
        "epochs": 5, "learning_rate": 0.001, "lora_alpha": None, "optimizer#max_norm": 2,
    }  # fmt: skip
    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: parse("--epoch", "5"), "epoch is 5, but this command has no such setting"),
        (lambda: parse("--epochs", "0"), "epochs is 0, expected"),
        (lambda: require_settings_of("pretrain.json", {"lora_rank": 4}), "it is one of configs/train.json"),
    ]
    for call, words in refusals:
        with pytest.raises(BundleError, match=words):
            call()


@pytest.mark.parametrize("value", ["\x1d", "2024-99-99", "[" * 20_000, "{a: b"])
def test_words_that_are_no_yaml(value: str) -> None:
    import argparse

    with pytest.raises(BundleError, match=r"epochs is .+, which is no YAML \("):
        parse_with_settings(argparse.ArgumentParser(), ["--epochs", value])


@pytest.mark.parametrize(
    ("configs", "mixed_in"), [(["train.json"], []), (["train.json", "evaluate.json"], ["volume.json"]), (INFER, [])]
)
def test_changed_settings_are_those_that_are_not_the_defaults(configs: list[str], mixed_in: list[str]) -> None:
    parser = ConfigParser(ConfigParser.load_config_files([str(FOLDER / name) for name in configs + mixed_in]))
    names = ", ".join(map(repr, configs))
    parser["imports"].append("$import bundle.core.setting_check as setting_check")
    parser["changed"] = f"$setting_check.changed_settings({names})"
    mixed: dict[str, Any] = {"batch_dice": True} if mixed_in else {}  # the default of a training is an expression
    assert parser.get_parsed_content("changed") == mixed
    parser.update({"output_dir": "there", "device": "auto", "amp": False})
    assert parser.get_parsed_content("changed") == {"output_dir": "there", "amp": False, **mixed}
