"""Encoders beside transformers: hidden states of packed sequences, gradients, the pooler, folders both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import measure
from tests.tiny_families import ENCODERS

every_encoder = pytest.mark.parametrize("name", ENCODERS)


@every_encoder
def test_hidden_states_and_gradients(name: str):
    found = measure.encoder_errors(name)
    print(f"{name}: hidden {found.logits:.1e}, gradients {max(found.gradients.values()):.1e}")
    assert found.logits <= 1e-4
    assert {n: far for n, far in found.gradients.items() if far > 1e-4} == {}


@every_encoder
@pytest.mark.filterwarnings("error")
def test_folders_go_both_ways(tmp_path: Path, name: str):
    trip = measure.round_trip(name, tmp_path)
    assert trip.complaints == {} and trip.same_weights and trip.same_config and trip.logits <= 4e-6
