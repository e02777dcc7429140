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
"""Optimizers: what they train, at which rates, and that they go on where they stopped."""

from __future__ import annotations

import copy

import pytest
import torch

from bundle.sam_sp.network import SamSP
from bundle.training.optimizer import ClippedMuon, parameter_groups
from bundle.training.schedule import warmup_cosine


@pytest.fixture
def network(toy: str) -> SamSP:
    return SamSP(sam=toy, trainable="full").requires_grad_(True)


def test_matrices_of_linear_layers_go_to_muon_and_all_the_rest_to_adamw(network: SamSP) -> None:
    optimizer = ClippedMuon(network, lr=1e-3, matrix_lr=2e-3, weight_decay=0.1)
    muon, decayed, plain = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    names = {id(p): name for name, p in network.named_parameters()}
    assert sorted(muon + decayed + plain) == sorted(names)
    assert all(names[p].endswith(".weight") for p in muon)
    assert any("attn.qkv.weight" in names[p] for p in muon)
    for table in ("rel_pos_h", "pos_embed", "mask_tokens", "point_embeddings", "output_upscaling"):
        assert not any(table in names[p] for p in muon), table
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_frozen_parameters_are_left_out(network: SamSP) -> None:
    network.image_encoder.requires_grad_(False)
    optimizer = ClippedMuon(network, lr=1e-3, matrix_lr=2e-3, weight_decay=0.1)
    frozen = {id(p) for p in network.image_encoder.parameters()}
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}


def steps(network: SamSP, optimizer: ClippedMuon, scheduler: torch.optim.lr_scheduler.LambdaLR, count: int) -> None:
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        loss = torch.stack([(p * torch.randn(p.shape, generator=generator)).sum() for p in network.parameters()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def test_a_restored_optimizer_steps_as_the_first_would(network: SamSP, toy: str) -> None:
    optimizer = ClippedMuon(network, lr=1e-3, matrix_lr=2e-3, weight_decay=0.1)
    scheduler = warmup_cosine(optimizer, 0.2, 10)
    steps(network, optimizer, scheduler, 3)

    other = SamSP(sam=toy, trainable="full").requires_grad_(True)
    other.load_state_dict(network.state_dict())
    again = ClippedMuon(other, lr=1e-3, matrix_lr=2e-3, weight_decay=0.1)
    schedule = warmup_cosine(again, 0.2, 10)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule.load_state_dict(scheduler.state_dict())
    steps(network, optimizer, scheduler, 2)
    steps(other, again, schedule, 2)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_gradients_are_clipped_together(network: SamSP) -> None:
    optimizer = ClippedMuon(network, lr=1e-3, matrix_lr=2e-3, weight_decay=0.0, max_norm=1.0)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    assert norm == pytest.approx(1.0, rel=1e-3)


def test_frozen_parameters_stay_out_of_the_optimizer() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    network[0].weight.requires_grad_(False)
    decayed, plain = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["params"] == [] and len(plain["params"]) == 3
