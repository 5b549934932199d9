"""Matrices quantized by the packages that made the layouts: bitsandbytes, compressed-tensors, MLX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from microgpt.io import safetensors
from microgpt.io.packed import opened

SHAPE = (96, 256)


def read(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> np.ndarray:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "x.safetensors")
    found = opened(safetensors.open_weights(folder / "x.safetensors"), config, "here")
    assert set(found) == {"w.weight"}
    return found["w.weight"].array()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [SHAPE, (7, 100), (700, 256)])
def test_bitsandbytes(tmp_path: Path, shape: tuple[int, int], kind: str, double: bool):
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    q, state = functional.quantize_4bit(w, quant_type=kind, blocksize=64, compress_statistics=double)
    right = functional.dequantize_4bit(q, state)
    tensors = {"w.weight": q, **{f"w.weight.{name}": value for name, value in state.as_dict(packed=True).items()}}
    got = read(tmp_path, tensors, {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert np.array_equal(got, right.numpy())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_compressed_tensors(tmp_path: Path, bits: int, symmetric: bool):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(num_bits=bits, group_size=32, strategy="group", symmetric=symmetric)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    parts = w.reshape(SHAPE[0], -1, 32)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    plain = {"weight": w, "weight_scale": scale, "weight_zero_point": zero}
    packed = PackedQuantizationCompressor.compress(dict(plain), scheme)
    right = PackedQuantizationCompressor.decompress(dict(packed), scheme)["weight"]
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": json.loads(args.model_dump_json())}}}  # fmt: skip
    got = read(tmp_path, {f"w.{name}": value for name, value in packed.items()}, {"quantization_config": settings})
    assert np.array_equal(got, right.float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(tmp_path: Path, bits: int, dtype: str):
    mx = pytest.importorskip("mlx.core", reason="needs mlx[cpu]")
    w = mx.array(np.random.default_rng(1).normal(size=SHAPE)).astype(getattr(mx, dtype))
    names = ("w.weight", "w.scales", "w.biases")
    parts = dict(zip(names, mx.quantize(w, group_size=64, bits=bits), strict=True))
    right = np.array(mx.dequantize(*parts.values(), group_size=64, bits=bits).astype(mx.float32))
    mx.save_safetensors(str(tmp_path / "x.safetensors"), parts, metadata={"format": "mlx"})
    found = opened(safetensors.open_weights(tmp_path / "x.safetensors"),
                   {"quantization": {"bits": bits, "group_size": 64}}, "here")  # fmt: skip
    assert np.array_equal(found["w.weight"].array(), right)
