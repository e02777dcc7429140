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
"""The table of all settings of all commands: what each takes and means, for the check, the page and the tracking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bundle.core.setting_forms import (
    BOOLEAN,
    DEVICE,
    INTENSITY,
    LABELS,
    NOTHING,
    PATH,
    TEXT,
    WIDTHS,
    Form,
    choice,
    mapping,
    number,
    one_of,
    whole,
)
from bundle.core.settings import AMP_DTYPES


@dataclass(frozen=True)
class Setting:
    """The values and the meaning of a setting; its default stands in the configs.

    Attributes:
        form: the values that it takes, beside null where that is the default of a config.
        meaning: in Markdown, as docs/reference/settings.md shows it: links start there.
        computed: the default in words, where the first config that has the setting computes it.
        elsewhere: the meaning by the name of a config in which it is another one.
    """

    form: Form
    meaning: str
    computed: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)


def _setting(form: Form, meaning: str, computed: str = "", **elsewhere: str) -> Setting:
    return Setting(form, meaning, computed, elsewhere)


PROMPTS_OF_A_USER = one_of("a mapping from names of files, or the path of a JSON file", mapping(""), PATH)
NETWORK = Form("the name of a network", TEXT.read)
SPLIT = mapping(
    "a mapping such as {'train': 'train.txt', 'validation': 100, 'test': 'test.txt', 'groups': 'groups.csv'}"
)
SHARE = number(least=0, most=1)
# What an evaluation and an inference say of what the model was built with, and of what may be changed afterwards.
TRAINED = dict.fromkeys(("evaluate", "inference"), "none: as the model was trained")
BUILT_IN = {config: f"{words}. Another value than that is an error" for config, words in TRAINED.items()}

# One entry a setting: the values, the meaning. What depends on other settings or on files is checked where it is used,
# for example the names of networks.
GROUPS: Mapping[str, Mapping[str, Setting]] = {
    "Data and files": {
        "dataset_dir": _setting(PATH, "folder with `images/` and `masks/`, possibly `negatives/`, or a datalist in "
            "JSON; none: the procedural demo set in `data/demo`",
            inference="folder of images, one file, or a datalist; none: the procedural demo set"),
        "split": _setting(SPLIT, "how images are divided, see [the guide](../guides/train.md#split-the-images); "
            "none: 80/10/10 by the hash of the name"),
        "mask_suffix": _setting(TEXT, "text between an image's name and that of its mask, for example `_mask`"),
        "boxes": _setting(PROMPTS_OF_A_USER, "boxes of a user, see [the guide](../guides/correct.md)"),
        "points": _setting(PROMPTS_OF_A_USER, "clicks of a user"),
        "output_dir": _setting(PATH, "where the run writes", evaluate="where figures and pictures go",
            inference="where masks go", export="where the file goes", merge="where `model.pt` and `model.json` go",
            evaluate_prompts="where figures and pictures go"),
        "weights": _setting(PATH, "model to start from", evaluate="the model to measure", inference="the model",
            pretrain="weights to start from, for example those of an earlier stage",
            evaluate_prompts="the promptable SAM to measure"),
        "publish": _setting(BOOLEAN, "whether the run replaces `models/model.pt`; it never does with procedural data",
            pretrain="whether the result replaces the file in `models/base/`"),
        "anonymous_names": _setting(BOOLEAN, "give images [names that say "
            "nothing](../guides/share.md#results-without-names) in every result"),
    },
    "Network": {
        "sam": _setting(NETWORK, "`vit_tiny`, `vit_b`, `vit_l`, `vit_h`, `lite_medsam`, `mobile_sam`, "
            "`sam2_hiera_tiny`, `sam2_hiera_small`, `sam2_hiera_base_plus` or `sam2_hiera_large`; `auto`: that of "
            "`sam_checkpoint` or `weights`, `vit_tiny` without them. A name that contradicts the file is an error",
            **BUILT_IN, pretrain="network, or `auto` for that of `weights`", unet="names the network in `model.json`"),
        "sam_checkpoint": _setting(PATH, "a SAM in place of the bundle's or Meta's: a file, a folder, or the name of a "
            "model in Hugging Face's cache, [in any layout](../guides/meta_sam.md#what-can-be-read); `random` for "
            "none; `plain:` before a file takes the plain SAM out of a SAM-HQ",
            merge="the base of that training, if it is not the one of the bundle"),
        "image_size": _setting(whole(1), "side of the input in pixels, a multiple of 16, of 4 for `lite_medsam`, of 32 "
            "for `sam2_…`; none: what the SAM was made for (256 for `vit_tiny` and `lite_medsam`, 1024 for the others)",
            **BUILT_IN),
        "input": _setting(choice("sam", "medsam", "lite_medsam", "sam2"), "what an image becomes; none: as the weights "
            "[have it](../guides/meta_sam.md#what-an-image-becomes)", **BUILT_IN),
        "num_classes": _setting(whole(1), "number of classes; none: as many as there are labels, or one", **BUILT_IN),
        "labels": _setting(LABELS, "names of the classes; none: those of a datalist, or `foreground`"),
        "exclusive": _setting(BOOLEAN, "whether several classes exclude each other", **BUILT_IN),
        "trainable": _setting(choice("lora", "decoder", "full"), "`lora`: adapters on q and v, as in the paper; "
            "`decoder`: the encoder is frozen; `full`: everything. Decoder and prompt encoder are trained "
            "in all three"),
        "lora_rank": _setting(whole(1), "rank of the adapters"),
        "lora_alpha": _setting(number(above=0), "scale of the adapters times the rank; none: the rank, which gives a "
            "scale of 1"),
        "attention": _setting(choice("auto", "plain", "bias", "fold", "blocks"), "how the encoder computes its "
            "attention, with equal results: `blocks` (default on a CPU), `fold` (on a GPU), `bias`, `plain`; TinyViT "
            "has `plain` and the fused kernel; see "
            "[Forms of attention](../explanation/performance.md#forms-of-attention)"),
        "checkpointing": _setting(BOOLEAN, "keep only the input of each encoder block for the gradient: less memory, "
            "about a third more time"),
        "compile": _setting(choice("off", "inference", "training"), "`inference`: compile the encoder's blocks with "
            "`torch.compile` for what has no gradient; `training`: for the steps of a training as well. The first "
            "images then take up to minutes; needs a C++ compiler, and Triton on a GPU. Not for `lite_medsam` and "
            "`mobile_sam`. Neither exports nor MONAI Label servers compile "
            "([On a GPU](../explanation/performance.md#on-a-gpu))",
            inference="as in a training; both other values compile"),
    },
    "Prompt": {
        "prompt": _setting(choice("self", "none", "expert"), "`self`: the box of y0; `none`: one pass, y1 is y0; "
            "`expert`: the box of the label, in an evaluation only",
            evaluate="none: as the model was trained. `self`, `none` as text, or `expert`",
            inference="as in an evaluation, without `expert`"),
        "prompt_threshold": _setting(number(least=0, below=1), "probability from which a pixel of y0 counts for the "
            "box", **TRAINED),
        "prompt_margin": _setting(number(least=0), "widens the box on each side by this fraction of its size",
            **TRAINED),
        "prompt_component": _setting(choice("all", "largest", "each"), "the box is drawn around all of y0, as in the "
            "paper; `largest`: around its largest connected component; `each`: [a box for each "
            "component](../guides/objects.md)", **TRAINED),
        "max_objects": _setting(whole(1), "with `each`: boxes of an image and class, at most, for the largest "
            "components; in a training step at most 8", **TRAINED),
        "presence_threshold": _setting(SHARE, "none: as chosen at the end of the training. A mask whose class has a "
            "lower presence is empty; 0: never"),
        "instances": _setting(BOOLEAN, "also write a [map with a number for each "
            "object](../guides/objects.md#a-number-for-each-object); needs `prompt_component` `each`"),
    },
    "Loss": {
        "distill_weight": _setting(number(least=0), "alpha of the paper, the weight of the self-distillation"),
        "distill_rampup": _setting(SHARE, "fraction of the training in which alpha rises from 0; 0: constant, as in "
            "the paper. Without it a training on few images may end by marking everything or nothing "
            "([figures](../results/polyps.md#alpha-from-the-first-step-and-alpha-that-rises))"),
        "distill_direction": _setting(choice("teacher_student", "student_teacher"), "KL(p1 ‖ p0) with y1 as the "
            "teacher, or `student_teacher`: KL(p0 ‖ p1)"),
        "distill_temperature": _setting(number(above=0), "divides the logits of both passes in the distillation"),
        "batch_dice": _setting(BOOLEAN, "Dice of all images of a batch together instead of each image",
            computed="true for several classes and volumes"),
        "initial_weight": _setting(number(least=0), "weight of an additional Dice(y0, y); 0 in the paper"),
        "iou_weight": _setting(number(least=0), "weight of the squared error of the IoU that the network predicts of "
            "its mask, as in SAM's own training; 0 in the paper"),
        "correction_weight": _setting(number(least=0), "weight of an additional Dice of y1 after a box or up to three "
            "clicks of a simulated user; 0 in the paper"),
        "presence_weight": _setting(number(least=0), "weight of the cross-entropy of the "
            "[presence](../guides/train.md#is-there-an-object-at-all), the probability of each class that the object "
            "is in the image; 0 in the paper, and then no mask is emptied"),
        "negative_crops": _setting(SHARE, "share of the training samples that are windows beside the objects, so that "
            "nothing is in them, see [the guide](../guides/train.md#images-that-show-nothing). Samples without such a "
            "window stay as they are"),
        "object_crops": _setting(SHARE, "share of the training samples that are windows around a labeled pixel, "
            "between 0.2 and all of the image's area, so that a small object is sometimes large, see "
            "[the guide](../guides/train.md#small-objects)"),
        "mosaics": _setting(SHARE, "share of the training samples that become four images of their batch in one, each "
            "at half its size, so that there are several objects, and small ones, see "
            "[the guide](../guides/train.md#small-objects)"),
    },
    "Training": {
        "epochs": _setting(whole(1), "length", computed="30; 18 on the demo set"),
        "batch_size": _setting(whole(1), "images per step", inference="images at a time"),
        "accumulation_steps": _setting(whole(1), "steps per update of the weights"),
        "learning_rate": _setting(number(above=0), "of AdamW, after the warm-up", pretrain="of AdamW"),
        "weight_decay": _setting(number(least=0), "of AdamW", pretrain="of both"),
        "warmup": _setting(number(least=0, below=1), "fraction of the steps in which the rate rises; then it falls to "
            "zero as a cosine"),
        "val_interval": _setting(whole(1), "epochs between validations"),
        "amp": _setting(BOOLEAN, "mixed precision: on CUDA in `amp_dtype`, and TF32 for what stays in float32 (false: "
            "float32 as such, also in convolutions); in training on a CPU in bfloat16, where that is faster (tried at "
            "the start)", inference="mixed precision on CUDA, in a MONAI Label server TF32 instead; on a CPU an "
            "inference is in float32"),
        "amp_dtype": _setting(choice("auto", *AMP_DTYPES), "on CUDA: `auto` is `bfloat16` on cards with instructions "
            "for it, else `float16`"),
        "cache": _setting(number(least=0), "MiB of decoded images that are kept in memory"),
        "disk_cache": _setting(number(least=0), "MiB of decoded images on disk: those that `cache` has no room for, "
            "and those of the validation; 0: none ([more](../guides/train.md#data-larger-than-memory))",
            evaluate="as in a training; an evaluation reads each image once"),
        "disk_cache_dir": _setting(PATH, "the folder of that; it can be deleted at any time"),
        "num_workers": _setting(whole(0), "processes that prepare images",
            computed="1 on a CPU; beside a GPU all usable cores but one, at most 8 (2 with volumes), shared by the "
            "processes of the machine",
            pretrain="processes that prepare images: 0 on a CPU, beside a GPU as in a training"),
        "checkpoint_minutes": _setting(number(least=0), "longest time between two checkpoints of an epoch; after an "
            "epoch there is one in any case ([more](../guides/train.md#interrupt-and-resume))"),
        "resume": _setting(BOOLEAN, "go on with the last run in `output_dir`: to the weights of a run that was never "
            "stopped"),
        "seed": _setting(one_of("a whole number, or none for another one each time", NOTHING, whole()),
            "same seed, same weights, bit for bit on a CPU, with any `num_workers`"),
        "debug": _setting(BOOLEAN, "show the traceback of every error, also of those that a user can fix"),
        "device": _setting(DEVICE, "where the network computes; `auto`: on CUDA where there is one, else on the CPU"),
    },
    "Evaluation": {
        "panels": _setting(whole(0), "pictures of each kind: best, median, worst"),
        "distances": _setting(BOOLEAN, "whether the Hausdorff distance and the surface Dice of volumes are measured, "
            "which takes time on large ones"),
    },
    "Volumes": {
        "orientation": _setting(TEXT, "none: as the model was trained, or `LPS`: how volumes are turned first"),
        "slice_axis": _setting(whole(0, 2), "none: as the model was trained, or 2: the axis that is cut across. With "
            "`LPS` these are axial slices"),
        "slices_as_rgb": _setting(choice("neighbors", "repeat"), "none: as the model was trained, or `neighbors`: a "
            "slice between its neighbors. `repeat`: three times the slice"),
        "intensity": _setting(INTENSITY, "none: as the model was trained, or `{'percentiles': [0.5, 99.5]}`. For CT a "
            "window: `{'window': [-160, 240]}`"),
        "slices_per_volume": _setting(whole(1), "slices of a volume in each step of a training"),
        "foreground": _setting(SHARE, "the share of them that is drawn from slices with foreground"),
        "slice_batch": _setting(whole(1), "slices at a time in evaluation and inference"),
        "surface_tolerance": _setting(number(least=0), "of the surface Dice, in millimeters"),
    },
    "Export, merging, MONAI Label, U-Net": {
        "format": _setting(choice("onnx", "torch_export", "torchscript"), "what is written"),
        "adapter": _setting(PATH, "folder that a training with `--trainable lora` wrote"),
        "embedding_cache": _setting(number(least=0), "MiB that a MONAI Label server keeps of embeddings, and as much "
            "of masks at low resolution, of the images that came last; 0: none. A command keeps nothing"),
        "channels": _setting(WIDTHS, "of each level"),
        "num_res_units": _setting(whole(0), "convolutions of each level"),
        "norm": _setting(choice("BATCH", "INSTANCE"), "normalization"),
    },
    "Pre-training": {
        "scenes_dir": _setting(PATH, "where procedural scenes are kept"),
        "scenes": _setting(whole(1), "scenes to train on"),
        "scenes_seed": _setting(whole(0), "their seed; 1 and 2 are those of validation and test, and refused"),
        "val_scenes": _setting(whole(1), "scenes to validate on"),
        "task": _setting(choice("objects", "geometry"), "`geometry`: fill the box, or draw the disk around the point, "
            "without looking at the image"),
        "prompts": _setting(whole(1), "prompts for each image"),
        "rounds": _setting(whole(1), "a box or a point first; in each further round a point where the mask is wrong, "
            "with the mask as a prompt"),
        "box_share": _setting(SHARE, "share of objects that a box asks for; a point for the others"),
        "smallest_crop": _setting(whole(1), "windows of a scene that are trained on have sides between this"),
        "largest_crop": _setting(whole(1), "and this many pixels"),
        "matrix_learning_rate": _setting(number(above=0), "of Muon, for the matrices of linear layers"),
        "bfloat16": _setting(BOOLEAN, "compute in bfloat16"),
        "test_scenes": _setting(whole(1), "procedural scenes, which no training or validation used"),
        "pictures": _setting(whole(0), "scenes to draw"),
    },
    "MONAI's own command": {
        "bundle_root": _setting(PATH, "the root of the bundle"),
        "tracking_uri": _setting(TEXT, "where runs are recorded, with `--tracking mlflow`"),
        "experiment_name": _setting(TEXT, "under which name there"),
        "run_name": _setting(TEXT, "the name of the run; none: the time"),
    },
}  # fmt: skip

RULES: Mapping[str, Setting] = {name: entry for group in GROUPS.values() for name, entry in group.items()}
# Settings that say where and when, not what is computed: they are no part of the record of a run.
NOT_RECORDED = ("bundle_root", "run_name")


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that a record of a run has, name and raw value."""
    return {name: value for name, value in config.items() if name in RULES and name not in NOT_RECORDED}
