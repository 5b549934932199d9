"""Plain ops: arithmetic with broadcasting, one-argument functions, reductions, shapes, batched matmul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from microgpt import ops
from microgpt.errors import DTypeError, ShapeError
from microgpt.tensors import Tensor

from .bounds import ELEMENTARY, U16, U32, Numbers, erf, gamma, sigmoid, sum_to, terms
from .case import Case, ErrorCase, Inputs, Rule, array

CASES: list[Case] = []
RULES: dict[str, Rule] = {}
ERRORS: list[ErrorCase] = []


def normal(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Inputs]:
    """Standard normal numbers of the given shapes."""
    return lambda rng: {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def positive(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Inputs]:
    """Numbers in [0.5, 2) of both signs where the name is b, else positive: divisors and logarithms stay tame."""
    return lambda rng: {name: rng.uniform(0.5, 2.0, shape) for name, shape in shapes.items()}


# -- element-wise of two: derivatives of (a, b) -> (d/da, d/db) -----------------------------------------------------
_BINARY: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Numbers, Numbers]], float, float]] = {
    # NumPy, slopes, roundings of the forward, roundings of a gradient before it is summed
    "add": (np.add, lambda a, b: (np.ones_like(a), np.ones_like(b)), 1, 0),
    "sub": (np.subtract, lambda a, b: (np.ones_like(a), -np.ones_like(b)), 1, 0),
    "mul": (np.multiply, lambda a, b: (b, a), 1, 1),
    "div": (np.divide, lambda a, b: (1 / b, -a / b / b), 1, 4),
    "maximum": (np.maximum, lambda a, b: (1.0 * (b <= a), 1.0 * (a < b)), 0, 0),
    "minimum": (np.minimum, lambda a, b: (1.0 * (a <= b), 1.0 * (b < a)), 0, 0),
}


def _binary_gradients(slopes: Callable[..., tuple[Numbers, Numbers]], roundings: float) -> Callable[..., Any]:
    def gradients(inputs: Inputs, options: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
        a, b = np.broadcast_arrays(inputs["a"], inputs["b"])
        bounds = {}
        for name, slope in zip("ab", slopes(a, b), strict=True):
            shape = inputs[name].shape
            # each product rounds, then the broadcast axes are summed in some order
            bounds[name] = (roundings * u + gamma(terms(dy, shape), u)) * sum_to(np.abs(dy * slope), shape)
        return bounds

    return gradients


for _name, (_numpy, _slopes, _forward, _backward) in _BINARY.items():
    _make = positive if _name == "div" else normal
    CASES += [
        Case(_name, "0", _make(a=(0, 3), b=(0, 3))),
        Case(_name, "1", _make(a=(), b=()), small=True),
        Case(_name, "17", _make(a=(17,), b=(17,)), small=True),
        Case(_name, "row", _make(a=(5, 7), b=(7,)), small=True),
        Case(_name, "column", _make(a=(5, 1), b=(1, 7)), small=True),
        Case(_name, "scalar", _make(a=(65,), b=())),
        Case(_name, "axes6", _make(a=(2, 1, 3, 1, 2, 3), b=(1, 2, 1, 2, 1, 3))),
        Case(_name, "shares", _make(a=(129, 257), b=(257,)), shares=True),
    ]
    RULES[_name] = Rule(
        lambda i, o, y, u, n=_forward: n * u * np.abs(y),
        _binary_gradients(_slopes, _backward),
        lambda a, b, f=_numpy: f(a, b),
    )
    _call = getattr(ops, _name)
    ERRORS += [
        ErrorCase(
            _name,
            "shapes",
            lambda f=_call: f(array((2, 3)), array((4,))),
            ShapeError,
            rf"{_name if _name not in ('maximum', 'minimum') else 'm'}.*\(2, 3\) and \(4,\)",
        ),
        ErrorCase(
            _name,
            "mixed",
            lambda f=_call: f(array((2,)), array((2,), "float64")),
            DTypeError,
            rf"{_name}: `b` expected float32 like `a`, got float64",
        ),
        ErrorCase(
            _name,
            "integers",
            lambda f=_call: f(array((2,), "int32"), array((2,), "int32")),
            DTypeError,
            rf"{_name}: `a` expected float32, float64 or bfloat16, got int32",
        ),
        ErrorCase(_name, "missing", lambda f=_call: f(array((2,))), TypeError, rf"{_name}: .*`b`"),
    ]

# -- element-wise of one --------------------------------------------------------------------------------------------
# NumPy, roundings of the forward relative to |y|, bound of the gradient in u: (x, y, dy) -> array. The formulas are
# those of basic.py; E is one elementary function with its surroundings.
E = ELEMENTARY
_UNARY: dict[str, tuple[Callable[..., Any], float, Callable[..., Numbers]]] = {
    "neg": (np.negative, 0, lambda x, y, dy: 0 * dy),
    "exp": (np.exp, E, lambda x, y, dy: (E + 1) * np.abs(dy * y)),
    "log": (np.log, E, lambda x, y, dy: 2 * np.abs(dy / x)),
    "sqrt": (np.sqrt, 1, lambda x, y, dy: 3 * np.abs(0.5 * dy / y)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 3, lambda x, y, dy: 6 * np.abs(0.5 * dy * y / x)),
    # 1 - y^2 cancels near 1: absolute error of y^2, twice that of y and a rounding
    "tanh": (np.tanh, E, lambda x, y, dy: (2 * E + 3) * np.abs(dy)),
    # e^(-x^2): the rounding of x^2 is multiplied by x^2
    "erf": (erf, E, lambda x, y, dy: (x * x + E + 4) * np.abs(dy) * 1.13 * np.exp(-x * x)),
    "sigmoid": (sigmoid, E, lambda x, y, dy: (2 * E + 3) * np.abs(dy) * y),
    "square": (np.square, 1, lambda x, y, dy: 2 * np.abs(2 * dy * x)),
    "reciprocal": (np.reciprocal, 1, lambda x, y, dy: 4 * np.abs(dy * y * y)),
    "sin": (np.sin, E, lambda x, y, dy: (E + 1) * np.abs(dy * np.cos(x))),
    "cos": (np.cos, E, lambda x, y, dy: (E + 1) * np.abs(dy * np.sin(x))),
}
for _name, (_numpy, _forward, _slope) in _UNARY.items():
    _make = positive if _name in ("log", "sqrt", "rsqrt", "reciprocal") else normal
    CASES += [
        Case(_name, "0", _make(x=(0,))),
        *(Case(_name, str(n), _make(x=(n,)), small=n <= 17) for n in (1, 15, 16, 17, 33, 127)),
        Case(_name, "shares", _make(x=(3, 16385)), shares=True),
    ]
    RULES[_name] = Rule(
        lambda i, o, y, u, n=_forward: n * u * np.abs(y),
        lambda i, o, y, dy, u, f=_slope: {"x": u * f(i["x"], y, dy)},
        lambda x, f=_numpy: f(x),
    )
    _call = getattr(ops, _name)
    ERRORS += [
        ErrorCase(
            _name,
            "bytes",
            lambda f=_call: f(array((2,), "uint8")),
            DTypeError,
            rf"{_name}: `x` expected float32, float64 or bfloat16, got uint8",
        ),
        ErrorCase(_name, "missing", lambda f=_call: f(), TypeError, rf"{_name}: .*`x`"),
    ]


# -- reductions -----------------------------------------------------------------------------------------------------
def _count(x: Numbers, axis: int | None) -> int:
    return x.size if axis is None else x.shape[axis]


def _spread(dy: Numbers, x: Numbers, options: Any) -> Numbers:
    axis = options.get("axis")
    if axis is not None and not options.get("keepdims"):
        dy = np.expand_dims(dy, axis)
    return np.broadcast_to(np.abs(dy), x.shape)


def _sum_bound(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return gamma(_count(i["x"], o.get("axis")), u) * np.abs(i["x"]).sum(
        o.get("axis"), keepdims=o.get("keepdims", False)
    )


def _mean_bound(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return _sum_bound(i, o, y, u) / _count(i["x"], o.get("axis")) + 2 * u * np.abs(y)


for _name in ("sum", "mean", "max"):
    CASES += [
        Case(_name, "all", normal(x=(5, 7)), small=True),
        Case(_name, "all0d", normal(x=()), small=True),
        Case(_name, "first", normal(x=(5, 7)), {"axis": 0}, small=True),
        Case(_name, "middle", normal(x=(3, 5, 7)), {"axis": 1, "keepdims": True}),
        Case(_name, "last", normal(x=(33, 65)), {"axis": -1}),
        Case(_name, "size1", normal(x=(3, 1, 5)), {"axis": 1}, small=True),
        Case(_name, "norows", normal(x=(0, 5)), {"axis": 1}),
        Case(_name, "columns", normal(x=(129, 300)), {"axis": 0, "keepdims": True}, shares=True),
        Case(_name, "rows", normal(x=(300, 129)), {"axis": 1}, shares=True),
    ]
    _call = getattr(ops, _name)
    ERRORS += [
        ErrorCase(
            _name, "axis", lambda f=_call: f(array((2, 3)), axis=2), ShapeError, rf"{_name}: `axis` .*\(2, 3\), got 2"
        ),
        ErrorCase(_name, "integers", lambda f=_call: f(array((2,), "int64")), DTypeError, rf"{_name}: `x` .*got int64"),
    ]
CASES.append(Case("sum", "empty", normal(x=(0, 5)), {"axis": 0}))
for _name in ("mean", "max"):
    _call = getattr(ops, _name)
    ERRORS.append(
        ErrorCase(
            _name,
            "empty",
            lambda f=_call: f(array((0, 3)), axis=0),
            ShapeError,
            rf"{_name}: `x` expected at least one element, got \(0, 3\)",
        )
    )
RULES["sum"] = Rule(_sum_bound, lambda i, o, y, dy, u: {"x": 0 * i["x"]}, lambda x, **o: x.sum(**o))
RULES["mean"] = Rule(
    _mean_bound,
    lambda i, o, y, dy, u: {"x": 2 * u * _spread(dy, i["x"], o) / max(1, _count(i["x"], o.get("axis")))},
    lambda x, **o: x.mean(**o),
)
RULES["max"] = Rule(
    lambda i, o, y, u: 0 * np.abs(y),
    lambda i, o, y, dy, u: {"x": 2 * u * _spread(dy, i["x"], o)},
    lambda x, **o: x.max(**o),
)


# -- shapes: copies, so exact ---------------------------------------------------------------------------------------
def _exact(i: Inputs, o: Any, y: Numbers, u: float) -> Numbers:
    return 0 * y


def _exact_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    parts = i.get("parts")
    return {f"parts[{j}]": 0 * part for j, part in enumerate(parts)} if parts else {"x": 0 * i["x"]}


CASES += [
    Case("reshape", "flat", normal(x=(3, 5)), {"shape": (15,)}, small=True),
    Case("reshape", "minus1", normal(x=(4, 6)), {"shape": (2, -1, 3)}),
    Case("reshape", "0d", normal(x=(1, 1)), {"shape": ()}, small=True),
    Case("reshape", "empty", normal(x=(0, 7)), {"shape": (7, 0)}),
    Case("permute", "swap", normal(x=(5, 7)), {"axes": (1, 0)}, small=True),
    Case("permute", "three", normal(x=(3, 5, 2)), {"axes": (2, 0, 1)}, small=True),
    Case("permute", "same", normal(x=(3, 5)), {"axes": (0, 1)}),
    Case("permute", "0d", normal(x=()), {"axes": ()}),
    Case("permute", "empty", normal(x=(0, 3, 2)), {"axes": (2, 0, 1)}),
    Case("permute", "axes6", normal(x=(2, 3, 2, 2, 3, 2)), {"axes": (5, 3, 1, 0, 2, 4)}),
    Case("permute", "shares", normal(x=(127, 263)), {"axes": (1, 0)}, shares=True),
    Case("slice", "row", normal(x=(5, 7)), {"index": 2}, small=True),
    Case("slice", "last", normal(x=(5, 7)), {"index": (-1, -1)}, small=True),
    Case("slice", "part", normal(x=(5, 7)), {"index": (slice(1, 4), slice(2, None))}, small=True),
    Case("slice", "none", normal(x=(5, 7)), {"index": slice(3, 3)}),
    Case("slice", "beyond", normal(x=(5, 7)), {"index": slice(-100, 100)}),
    Case("slice", "shares", normal(x=(300, 129)), {"index": (slice(3, 290), slice(1, 128))}, shares=True),
    Case("concat", "rows", lambda rng: {"parts": [rng.standard_normal((n, 3)) for n in (2, 0, 5)]}, small=True),
    Case(
        "concat",
        "columns",
        lambda rng: {"parts": [rng.standard_normal((3, n)) for n in (1, 4)]},
        {"axis": -1},
        small=True,
    ),
    Case("concat", "one", lambda rng: {"parts": [rng.standard_normal((3, 2))]}),
    Case(
        "concat",
        "shares",
        lambda rng: {"parts": [rng.standard_normal((300, n)) for n in (65, 129)]},
        {"axis": 1},
        shares=True,
    ),
]
RULES["reshape"] = Rule(_exact, _exact_gradients, lambda x, shape: x.reshape(shape))
RULES["permute"] = Rule(_exact, _exact_gradients, lambda x, axes: x.transpose(axes))
RULES["slice"] = Rule(_exact, _exact_gradients, lambda x, index: x[index])
RULES["concat"] = Rule(_exact, _exact_gradients, lambda parts, axis=0: np.concatenate(parts, axis))
ERRORS += [
    ErrorCase(
        "reshape", "size", lambda: ops.reshape(array((2, 3)), (5,)), ShapeError, r"reshape: `shape` expected 6 .*\(5,\)"
    ),
    ErrorCase("reshape", "twice", lambda: ops.reshape(array((2, 3)), (-1, -1)), ShapeError, r"reshape: `shape`"),
    ErrorCase(
        "reshape", "minus1", lambda: ops.reshape(array((2, 3)), (4, -1)), ShapeError, r"reshape: `shape` .*divide 6"
    ),
    ErrorCase("reshape", "minus2", lambda: ops.reshape(array((6,)), (-2, -3)), ShapeError, r"reshape: `shape`"),
    ErrorCase(
        "permute",
        "axes",
        lambda: ops.permute(array((2, 3)), (0, 0)),
        ShapeError,
        r"permute: `axes` .*\[0, 1\], got \[0, 0\]",
    ),
    ErrorCase(
        "slice",
        "index",
        lambda: Tensor(array((2, 3)))[5],
        ShapeError,
        r"slice: `index` expected -2\.\.1 on axis 0, got 5",
    ),
    ErrorCase(
        "slice", "step", lambda: Tensor(array((2, 3)))[::2], ShapeError, r"slice: `index` expected step 1, got 2"
    ),
    ErrorCase(
        "slice", "axes", lambda: Tensor(array((2,)))[0, 0], ShapeError, r"slice: `index` expected at most 1 axes, got 2"
    ),
    ErrorCase(
        "concat",
        "sizes",
        lambda: ops.concat([array((2, 3)), array((2, 4))]),
        ShapeError,
        r"concat: `parts\[1\]` expected \(2, 3\) apart from axis 0, got \(2, 4\)",
    ),
    ErrorCase("concat", "none", lambda: ops.concat([]), ShapeError, r"concat: `parts` expected at least one"),
    ErrorCase(
        "concat",
        "mixed",
        lambda: ops.concat([array((2,)), array((2,), "float64")]),
        DTypeError,
        r"concat: `parts\[1\]`",
    ),
    ErrorCase("concat", "axis", lambda: ops.concat([array((2,))], 1), ShapeError, r"concat: `axis`"),
]


# -- matmul: one chain over K (csrc/core/args.h), and the gradients are matmuls -------------------------------------
def _matmul_gradients(i: Inputs, o: Any, y: Numbers, dy: Numbers, u: float) -> dict[str, Numbers]:
    a, b, d = np.abs(i["a"]), np.abs(i["b"]), np.abs(dy)
    rows = a.shape[-2] if b.ndim > 2 else a.size // max(1, a.shape[-1])
    db = np.swapaxes(a, -1, -2) @ d
    return {
        "a": gamma(y.shape[-1] + 1, u) * (d @ np.swapaxes(b, -1, -2)),
        "b": gamma(rows + 1, u) * (sum_to(db, b.shape) if b.ndim == 2 else db),
    }


def _product(m: int, n: int, inner: int, **flags: bool) -> Case:
    return Case("matmul", f"{m}x{n}x{inner}", normal(a=(m, inner), b=(inner, n)), **flags)


CASES += [
    *(
        _product(m, n, inner)
        for m, n, inner in ((0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (1, 129, 65), (129, 1, 63))
    ),
    *(_product(m, n, inner, small=True) for m, n, inner in ((3, 5, 7), (2, 17, 3))),
    *(_product(n, n, n) for n in (15, 16, 17, 31, 33, 63, 65)),
    _product(127, 131, 257, shares=True),
    _product(1, 4099, 300, shares=True),
    Case("matmul", "batch", normal(a=(2, 3, 5, 7), b=(2, 3, 7, 4))),
    Case("matmul", "shared", normal(a=(3, 5, 7), b=(7, 4)), small=True),
    Case("matmul", "nobatch", normal(a=(0, 5, 7), b=(0, 7, 4))),
    Case("matmul", "shares-batch", normal(a=(5, 65, 33), b=(5, 33, 129)), shares=True),
]
RULES["matmul"] = Rule(
    lambda i, o, y, u: gamma(i["a"].shape[-1] + 1, u) * (np.abs(i["a"]) @ np.abs(i["b"])),
    _matmul_gradients,
    lambda a, b: a @ b,
)
ERRORS += [
    ErrorCase(
        "matmul",
        "inner",
        lambda: ops.matmul(array((2, 3)), array((4, 5))),
        ShapeError,
        r"matmul: `b` expected 3 rows .*\(4, 5\)",
    ),
    ErrorCase("matmul", "vector", lambda: ops.matmul(array((3,)), array((3, 2))), ShapeError, r"matmul: `a` .*\(3,\)"),
    ErrorCase(
        "matmul",
        "batch",
        lambda: ops.matmul(array((2, 2, 3)), array((4, 3, 5))),
        ShapeError,
        r"matmul: `b` expected leading axes \(2,\) or none, got \(4, 3, 5\)",
    ),
    ErrorCase(
        "matmul", "mixed", lambda: ops.matmul(array((2, 3)), array((3, 2), "float64")), DTypeError, r"matmul: `b`"
    ),
    ErrorCase("matmul", "missing", lambda: ops.matmul(array((2, 3))), TypeError, r"matmul: .*`b`"),
]


# -- element type ------------------------------------------------------------------------------------------------------
def _cast_bound(o: Any, x: Numbers, u: float) -> Numbers:
    """Exact, except for float32 on its way to bfloat16 (and its gradient, which comes from there)."""
    return U16 * np.abs(x) if u == U32 and o["dtype"] == "bfloat16" else 0 * x


CASES += [
    *(
        Case(
            "cast",
            f"{dtype}-{label}",
            normal(x=shape),
            {"dtype": dtype},
            small=label == "3x5",
            shares=label == "shares",
        )
        for dtype in ("float32", "bfloat16")
        for label, shape in (("3x5", (3, 5)), ("17", (17,)), ("0d", ()), ("empty", (0, 3)), ("shares", (41, 1009)))
    )
]
RULES["cast"] = Rule(
    lambda i, o, y, u: _cast_bound(o, y, u), lambda i, o, y, dy, u: {"x": _cast_bound(o, dy, u)}, lambda x, dtype: x
)
ERRORS += [
    ErrorCase(
        "cast",
        "half",
        lambda: ops.cast(array((2,)), "float16"),
        DTypeError,
        "cast: `dtype` expected float32 or bfloat16",
    ),
    ErrorCase(
        "cast",
        "int",
        lambda: ops.cast(array((2,), "int32"), "float32"),
        DTypeError,
        "cast: `x` expected float32.*int32",
    ),
]
