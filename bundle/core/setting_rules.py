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
"""The table of all settings of all commands: the values that each takes."""

from __future__ import annotations

from collections.abc import Mapping

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

PROMPTS_OF_A_USER = one_of("a mapping from names of files, or the path of a JSON file", mapping(""), PATH)

NETWORK = Form("the name of a network", TEXT.read)

# Beside these values, a setting takes null where that is the default of a config. What depends on other settings or on
# files is checked where it is used, for example the names of networks.
RULES: Mapping[str, Form] = {
    # data and files
    "bundle_root": PATH,
    "dataset_dir": PATH,
    "split": mapping(
        "a mapping such as {'train': 'train.txt', 'validation': 100, 'test': 'test.txt', 'groups': 'groups.csv'}"
    ),
    "mask_suffix": TEXT,
    "output_dir": PATH,
    "weights": PATH,
    "publish": BOOLEAN,
    "boxes": PROMPTS_OF_A_USER,
    "points": PROMPTS_OF_A_USER,
    "instances": BOOLEAN,
    "anonymous_names": BOOLEAN,
    # network
    "sam": NETWORK,
    "sam_checkpoint": PATH,
    "image_size": whole(1),
    "input": choice("sam", "medsam", "lite_medsam"),
    "num_classes": whole(1),
    "labels": LABELS,
    "exclusive": BOOLEAN,
    "trainable": choice("lora", "decoder", "full"),
    "lora_rank": whole(1),
    "lora_alpha": number(above=0),
    "attention": choice("auto", "plain", "bias", "fold", "blocks"),
    "checkpointing": BOOLEAN,
    "compile": choice("off", "inference", "training"),
    # prompt
    "prompt": choice("self", "none", "expert"),
    "prompt_threshold": number(least=0, below=1),
    "prompt_margin": number(least=0),
    "prompt_component": choice("all", "largest", "each"),
    "max_objects": whole(1),
    "presence_threshold": number(least=0, most=1),
    # loss
    "distill_weight": number(least=0),
    "distill_rampup": number(least=0, most=1),
    "distill_direction": choice("teacher_student", "student_teacher"),
    "distill_temperature": number(above=0),
    "batch_dice": BOOLEAN,
    "initial_weight": number(least=0),
    "iou_weight": number(least=0),
    "correction_weight": number(least=0),
    "presence_weight": number(least=0),
    "negative_crops": number(least=0, most=1),
    "object_crops": number(least=0, most=1),
    "mosaics": number(least=0, most=1),
    # training
    "epochs": whole(1),
    "batch_size": whole(1),
    "accumulation_steps": whole(1),
    "learning_rate": number(above=0),
    "weight_decay": number(least=0),
    "warmup": number(least=0, below=1),
    "val_interval": whole(1),
    "amp": BOOLEAN,
    "amp_dtype": choice("auto", *AMP_DTYPES),
    "cache": number(least=0),
    "disk_cache": number(least=0),
    "disk_cache_dir": PATH,
    "num_workers": whole(0),
    "resume": BOOLEAN,
    "seed": one_of("a whole number, or none for another one each time", NOTHING, whole()),
    "device": DEVICE,
    # evaluation
    "panels": whole(0),
    "distances": BOOLEAN,
    # volumes
    "orientation": TEXT,
    "slice_axis": whole(0, 2),
    "slices_as_rgb": choice("neighbors", "repeat"),
    "intensity": INTENSITY,
    "slices_per_volume": whole(1),
    "foreground": number(least=0, most=1),
    "slice_batch": whole(1),
    "surface_tolerance": number(least=0),
    # export, merging, MONAI Label, U-Net
    "format": choice("onnx", "torch_export", "torchscript"),
    "adapter": PATH,
    "embedding_cache": number(least=0),
    "channels": WIDTHS,
    "num_res_units": whole(0),
    "norm": choice("BATCH", "INSTANCE"),
    # pre-training
    "scenes_dir": PATH,
    "scenes": whole(1),
    "scenes_seed": whole(0),
    "val_scenes": whole(1),
    "task": choice("objects", "geometry"),
    "prompts": whole(1),
    "rounds": whole(1),
    "box_share": number(least=0, most=1),
    "smallest_crop": whole(1),
    "largest_crop": whole(1),
    "matrix_learning_rate": number(above=0),
    "bfloat16": BOOLEAN,
    "test_scenes": whole(1),
    "pictures": whole(0),
    # of MONAI's own command
    "tracking_uri": TEXT,
    "experiment_name": TEXT,
    "run_name": TEXT,
}
