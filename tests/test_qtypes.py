"""Every type of quantized weight: numbers bit for bit, products, gradients, permuted columns, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt import _kernels as k
from microgpt import ops
from microgpt.errors import ConfigError, FormatError, NonFiniteError, ShapeError
from microgpt.io import ggml
from microgpt.io.stored import Stored
from microgpt.models.quantized import restored
from microgpt.qtensor import GGUF_TYPES, NESTED, Q_TYPES, QTensor
from microgpt.tensors import numpy_dtype, tensor
from tests.test_gguf import STORED

NF4 = np.linspace(-1.0, 1.0, 16, dtype=np.float32) ** 3
PACKED = [name for name, row in Q_TYPES.items() if not row.fixed or name in ("q4_1", "q5_0", "q5_1", "mxfp4", "iq4_nl")]


def blocks(kind: str, n: int, inner: int, seed: int = 0) -> np.ndarray:
    """Any bytes but scales near those of real weights: (n, bytes of a row)."""
    random, type = np.random.default_rng(seed), ggml.NAMED[kind]
    made = random.integers(0, 256, (n, ggml.row_bytes(type, inner)), np.uint8).view(type.layout)
    for name in type.layout.names or ():
        if type.layout[name] == np.float16:
            made[name] = random.normal(0, 0.02, made.shape).astype(np.float16)
    if kind == "MXFP4":
        made["e"] = random.integers(117, 124, made.shape)
    return made.view(np.uint8)


def parts(name: str, n: int, inner: int, group: int = 32, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """What pack() takes for a weight (n, inner) of a type, and its numbers."""
    random, type = np.random.default_rng(seed), Q_TYPES[name]
    group = type.group(inner, group)
    groups = -(-inner // group)
    codes = random.integers(0, 1 << type.bits, (n, inner), np.uint8)
    narrow = np.dtype(numpy_dtype("bfloat16") if name.endswith("bf16") else np.float16)
    held = narrow if type.product and not type.channel else np.dtype(np.float32)
    wide = random.normal(0, 0.02, (n, groups)).astype(held)
    given: dict[str, Any] = {"codes": codes, "scales": wide.astype(np.float32), "group": group}
    values = codes.astype(np.float32) - type.offset
    if name == "iq4_nl":
        values = ggml.IQ4_VALUES[codes]
    scale = given["scales"]
    if name == "mxfp4":
        given["scales"] = random.integers(117, 124, (n, groups), np.uint8)
        scale, values = np.exp2(given["scales"].astype(np.float32) - 128), ggml.MXFP4_VALUES[codes]
    if name.startswith("nf4"):
        given["codebook"], values = NF4, NF4[codes]
    if name == "nf4_double":
        given["scales"] = random.integers(0, 256, (n, groups), np.uint8)
        table = np.linspace(-1, 1, 256, dtype=np.float32)
        second = random.uniform(0.5, 2.0, -(-n * groups // NESTED)).astype(np.float32)
        given["nested"] = table, 0.03, second
        each = second[np.arange(n * groups) // NESTED].reshape(n, groups)
        scale = table[given["scales"]] * each + np.float32(0.03)
    spread = np.repeat(scale, group, axis=1)[:, :inner]
    if type.least == 1:
        least = random.normal(0, 0.1, (n, groups)).astype(held)
        given["minimums"] = least.astype(np.float32)
        if name.startswith("affine"):  # in the scales' type
            numbers = np.repeat(wide, group, 1)[:, :inner] * codes.astype(held) + np.repeat(least, group, 1)[:, :inner]
        else:
            numbers = spread * values + np.repeat(given["minimums"], group, axis=1)[:, :inner]
    elif type.least == 2:
        given["zeros"] = random.integers(0, 1 << type.bits, (n, groups), np.uint8)
        numbers = spread * (values - np.repeat(given["zeros"], group, axis=1)[:, :inner])
    else:
        numbers = spread * values
    return given, numbers.astype(np.float32)


def made(name: str, n: int, inner: int, seed: int = 0, **more: Any) -> QTensor:
    kinds = {type: kind for kind, type in GGUF_TYPES.items()}
    if name in PACKED:
        return QTensor.pack(name, **parts(name, n, inner, seed=seed)[0], **more)
    return QTensor.from_ggml(kinds[name], blocks(kinds[name], n, inner, seed), (n, inner), **more)


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


# -- numbers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", sorted(GGUF_TYPES))
def test_blocks_of_gguf_keep_their_numbers_and_their_size(kind: str):
    raw = blocks(kind, 96, 768)
    q = QTensor.from_ggml(kind, raw, (96, 768))
    right = ggml.dequantize(raw.reshape(-1), ggml.NAMED[kind], (96, 768))  # with the bits of gguf-py: test_gguf.py
    assert np.array_equal(bits(q.dequantize()), bits(right))
    assert q.nbytes == raw.size
    some = QTensor.from_ggml(kind, lambda start, stop: raw[start:stop], (96, 768), "bfloat16")
    assert np.array_equal(some.dequantize(33, 50), right[33:50])
    assert np.array_equal(
        some.rows(k.from_numpy(np.array([95, 0, 31, 32], np.int32)), "float32").numpy(), right[[95, 0, 31, 32]]
    )


@pytest.mark.parametrize("kind", sorted(GGUF_TYPES))
def test_a_row_of_gguf_py(kind: str):
    raw, kept = STORED[f"raw.{kind}"].reshape(1, -1), ggml.NAMED[kind]
    try:
        q = QTensor.from_ggml(kind, raw, (1, kept.weights))
    except NonFiniteError:
        assert not np.isfinite(STORED[f"bits.{kind}"].view(np.float32)).all()
        return
    assert np.array_equal(bits(q.dequantize())[0], STORED[f"bits.{kind}"])


@pytest.mark.parametrize("group", [16, 64, 200])
@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_keep_their_numbers(name: str, group: int):
    given, numbers = parts(name, 70, 300 if not Q_TYPES[name].fixed else 320, group)
    q = QTensor.pack(name, **given)
    assert np.array_equal(q.dequantize() + 0.0, numbers + 0.0)  # -0 is 0
    for dtype in ("bfloat16", "float64"):
        assert np.array_equal(q.dequantize(dtype=dtype), numbers.astype(numpy_dtype(dtype)))


def test_bits_per_weight_are_the_source_s():
    nested = 4 + 8 / 64 + 32 / (64 * NESTED)
    sizes = {"affine4_bf16": 4.5, "zero4": 4.3125, "zero8": 8.375, "nf4": 4.5, "nf4_double": nested, "mxfp4": 4.25}
    for name, wanted in sizes.items():
        given, _ = parts(name, 1024, 1024, 64)
        tables = {"nf4": 16, "nf4_double": 273}.get(name, 0) * 32 / 2**20
        assert QTensor.pack(name, **given).bits_per_weight == wanted + tables, name


# -- products ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("name", sorted(Q_TYPES))
def test_products_round_activations_alone(name: str, rows: int):
    q = made(name, 70, 512)
    values = np.random.default_rng(1).normal(size=(rows, 512)).astype(np.float32)
    y = ops.linear(tensor(values), q).numpy().astype(np.float64)
    w, group = q.dequantize().astype(np.float64), min(q.group, 512)
    if name.startswith("affine"):  # products take numbers before they are rounded to their own type
        given, _ = parts(name, 70, 512)
        scale, least = (np.repeat(given[part].astype(np.float64), group, axis=1) for part in ("scales", "minimums"))
        assert np.abs(scale * given["codes"] + least - w).max() <= 2.0**-8 * 3 * np.abs(w).max()
        w = scale * given["codes"] + least
    most = np.stack([np.abs(values[:, g : g + group]).max(1) for g in range(0, 512, group)], 1)
    weight = np.stack([np.abs(w[:, g : g + group]).sum(1) for g in range(0, 512, group)], 1)
    # Half a step of each activation, and float32's sums.
    bound = (most / 254) @ weight.T * (1 + 1e-4) + 1e-4
    assert (np.abs(y - values @ w.T) <= bound).all()
    if not Q_TYPES[name].product:
        assert np.abs(y - values @ w.T).max() < 1e-4


@pytest.mark.parametrize("name", sorted(Q_TYPES))
def test_weight_only_products_and_gradients(name: str):
    q = made(name, 70, 512)
    q.activations = "float"
    values = np.random.default_rng(1).normal(size=(5, 512)).astype(np.float32)
    gradients = []
    for weight in (q, tensor(q.dequantize())):
        x = tensor(values, requires_grad=True)
        y = ops.linear(x, weight)
        (y * 2.0).sum().backward()
        gradients.append((y.numpy().copy(), x.grad.copy()))
    assert np.array_equal(gradients[0][0], gradients[1][0])
    assert np.array_equal(gradients[0][1], gradients[1][1])


def test_projections_of_types_with_like_groups_share_activations():
    weights = [made(name, 64, 512) for name in ("q4_k", "q6_k", "iq4_xs")]
    x = tensor(np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32))
    rows = ops.shared_rows(x, weights)
    assert rows is not None
    for weight in weights:
        assert np.array_equal(ops.linear(x, weight, rows=rows).numpy(), ops.linear(x, weight).numpy())
    assert ops.shared_rows(x, [weights[0], made("q5_0", 64, 512)]) is None


@pytest.mark.parametrize("name", ["zero4", "int4", "affine8"])
def test_permuted_columns(name: str, tmp_path: Path):
    order = np.random.default_rng(5).permutation(300)
    given, numbers = parts(name, 70, 300)
    q = QTensor.pack(name, **given, permutation=order)
    right = np.empty_like(numbers)
    right[:, order] = numbers
    assert np.array_equal(q.dequantize() + 0.0, right + 0.0)
    x = np.random.default_rng(1).normal(size=(9, 300)).astype(np.float32)
    plain = QTensor.pack(name, **given)
    assert np.array_equal(ops.linear(tensor(x), q).numpy(), ops.linear(tensor(x[:, order]), plain).numpy())
    assert ops.shared_rows(tensor(x), [q, plain]) is None
    for bad in (np.zeros(300, np.int64), order[:-1], order + 1):
        with pytest.raises(ShapeError, match="permutation"):
            QTensor.pack(name, **given, permutation=bad)
    stored = Stored(q.data.shape, "uint8", lambda: q.data.numpy().copy())
    again = restored((name, q.group, 70, 300), stored, "float32", "w")
    assert np.array_equal(again.dequantize(), q.dequantize())
    data = q.data.numpy()
    data[-4:] = 255
    with pytest.raises(FormatError, match="w: permutation"):
        restored((name, q.group, 70, 300), stored, "float32", "w")


# -- bad input ---------------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_said():
    given, _ = parts("zero4", 4, 64)
    for change, error, text in [
        ({"zeros": None}, ConfigError, "zeros: zero4 needs zeros"),
        ({"minimums": given["scales"]}, ConfigError, "minimums"),
        ({"zeros": given["zeros"] + 16}, ShapeError, "zeros: expected numbers below 16"),
        ({"zeros": given["zeros"][:, :1]}, ShapeError, "zeros"),
        ({"codes": given["codes"] + 16}, ShapeError, "codes: expected numbers below 16"),
        ({"scales": given["scales"] * np.float32(1.0001)}, ConfigError, "float16"),
        ({"scales": given["scales"] * np.nan}, NonFiniteError, "scales"),
        ({"scales": given["zeros"]}, ConfigError, "scales: zero4 expected numbers"),
        ({"codebook": NF4}, ConfigError, "codebook: zero4 has no codebook"),
        ({"group": 20}, ConfigError, "multiple of 8"),
    ]:
        with pytest.raises(error, match=text):
            QTensor.pack("zero4", **{**given, **change})
    nested, _ = parts("nf4_double", 4, 64)
    with pytest.raises(ConfigError, match="nested"):
        QTensor.pack("nf4_double", **{**nested, "nested": None})
    with pytest.raises(ShapeError, match="nested scales: expected 1 numbers"):
        QTensor.pack("nf4_double", **{**nested, "nested": (*nested["nested"][:2], np.ones(2, np.float32))})
    with pytest.raises(ConfigError, match="not rounded to q4_k"):
        QTensor.from_float(np.ones((4, 256), np.float32), "q4_k")
    with pytest.raises(ConfigError, match="one scale a row"):
        QTensor((4, 256), "int8_channel", ordered=True)


def test_blocks_that_are_wrong_are_named():
    for kind in sorted(GGUF_TYPES):
        raw = blocks(kind, 40, 512)
        with pytest.raises(ShapeError, match="w: 40 rows"):
            QTensor.from_ggml(kind, raw[:, :-1], (40, 512), what="w")
        with pytest.raises(ShapeError, match="multiple of"):
            QTensor.from_ggml(kind, raw, (40, 510), what="w")
        layout = ggml.NAMED[kind].layout
        for name in layout.names or ():
            if layout[name] == np.float16:
                bad = raw.copy().view(layout)
                bad[name][39, -1] = np.nan if name == "d" else np.inf
                with pytest.raises(NonFiniteError, match="w: scales"):
                    QTensor.from_ggml(kind, bad.view(np.uint8), (40, 512), what="w")
    with pytest.raises(ConfigError, match="Q4_K"):
        QTensor.from_ggml("Q4_KK", raw, (40, 512))


def test_doctor_says_which_types_are_fast(capsys: pytest.CaptureFixture[str]):
    from microgpt.cli.doctor import examine, quantized

    found = examine()["quantized"]
    assert set(found) == set(Q_TYPES)
    assert found["nf4"].startswith("slow")
    assert found == quantized(k.isa())
    assert {name for name, text in quantized("avx2").items() if text != "fast"} == {"nf4", "nf4_double"}
    assert all(text.startswith("slow") for text in quantized("scalar").values())
