"""A whole GPT on Python floats: autograd, transformer, Adam and sampling, standard library only.

Read it from top to bottom; nothing is hidden elsewhere. Everything else in microgpt computes the same
thing faster. Run it with ``python -m microgpt.scalar``: it reads a list of names, learns which letter
follows which, and invents new names. The algorithm is that of Andrej Karpathy's microgpt.

The build also compiles this very source with Cython, as ``microgpt._scalar`` (types: ``_scalar.pxd``);
both give the same losses to the last bit.
"""

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from pathlib import Path

# ---------------------------------------------------------------------------------------- autograd
# Training asks one question of every weight: if it grew a little, how much would the loss grow? That
# number is its gradient. Any formula is a chain of tiny steps (+, *, exp, ...) whose own slopes are
# easy, so each step remembers its inputs and the slope towards each, and the chain rule does the rest.


class Value:
    """A number that remembers how it was made; `grad` becomes d(loss)/d(this) after ``loss.backward()``."""

    # Two fixed child slots instead of a tuple of children: a training step makes about 100,000 of these,
    # and tuples would triple the time spent on allocation and garbage collection.
    __slots__ = ("data", "dleft", "dright", "grad", "left", "right", "users")

    def __init__(
        self,
        data: float,
        left: "Value | None" = None,  # first input of the step that made this number (None: a weight, a constant)
        dleft: float = 0.0,  # slope of this number with respect to `left`
        right: "Value | None" = None,
        dright: float = 0.0,
    ) -> None:
        self.data = data
        self.grad = 0.0
        self.left = left
        self.dleft = dleft
        self.right = right
        self.dright = dright
        self.users = 0  # how many later steps still owe this one their share of the gradient

    # Only `+` and `*` join two Values, so only they need two slots. A plain number has no gradient and
    # takes no slot, which keeps the graph small.
    def __add__(self, other: "Value | float") -> "Value":
        if isinstance(other, Value):
            return Value(self.data + other.data, self, 1.0, other, 1.0)
        return Value(self.data + other, self, 1.0)

    def __mul__(self, other: "Value | float") -> "Value":
        if isinstance(other, Value):
            return Value(self.data * other.data, self, other.data, other, self.data)
        return Value(self.data * other, self, other)

    def __pow__(self, power: float) -> "Value":
        return Value(self.data**power, self, power * self.data ** (power - 1.0))

    def exp(self) -> "Value":
        """e to this number."""
        e = exp(self.data)
        return Value(e, self, e)

    def log(self) -> "Value":
        """The natural logarithm; raises ValueError where the number is not above 0."""
        return Value(log(self.data), self, 1.0 / self.data)

    def relu(self) -> "Value":
        """This number where it is above 0, otherwise 0: the bend that lets layers be more than one matrix."""
        return Value(self.data, self, 1.0) if self.data > 0.0 else Value(0.0, self, 0.0)

    # The rest is spelled with the steps above, so there is no other slope to get wrong.
    def __radd__(self, other: float) -> "Value":
        return self + other

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __neg__(self) -> "Value":
        return self * -1.0

    def __sub__(self, other: "Value | float") -> "Value":
        return self + (-other)

    def __rsub__(self, other: float) -> "Value":
        return (-self) + other

    def __truediv__(self, other: "Value | float") -> "Value":
        return self * other**-1.0

    def __rtruediv__(self, other: float) -> "Value":
        return self**-1.0 * other

    def __repr__(self) -> str:
        return f"Value({self.data!r}, grad={self.grad!r})"

    def backward(self) -> None:
        """Add d(self)/d(v) to ``v.grad`` of each `v` this number was made from; the graph is used up.

        A step may pass its gradient on only when all its users have added their part. So the first walk
        counts users, and the second visits a step when its last user has reported. Both walks keep their
        own list of things to do, because a graph is deeper than Python's call stack.
        """
        node: Value = self
        todo = [node]
        while todo:
            node = todo.pop()
            for child in (node.left, node.right):
                if child is not None:
                    if child.users == 0:  # first meeting
                        todo.append(child)
                    child.users += 1
        self.grad += 1.0  # d(loss)/d(loss)
        todo = [self]
        while todo:
            node = todo.pop()
            grad = node.grad
            left = node.left
            if left is not None:
                left.grad += grad * node.dleft
                left.users -= 1
                if left.users == 0:
                    todo.append(left)
                node.left = None
            right = node.right
            if right is not None:
                right.grad += grad * node.dright
                right.users -= 1
                if right.users == 0:
                    todo.append(right)
                node.right = None


# --------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Config:
    """The shape of the model and the settings of its training; the defaults learn names in a minute."""

    n_layer: int = 1
    n_embd: int = 16
    n_head: int = 4
    block_size: int = 16
    init_std: float = 0.08
    lr: float = 0.01
    beta1: float = 0.85
    beta2: float = 0.99
    eps: float = 1e-8


Vector = list[Value]
Matrix = list[list[Value]]


def dot(a: Vector, b: Vector) -> Value:
    """The sum of products of two vectors of one length."""
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def linear(x: Vector, weight: Matrix) -> Vector:
    return [dot(row, x) for row in weight]


def add(a: Vector, b: Vector) -> Vector:
    return [p + q for p, q in zip(a, b, strict=True)]


def rms_norm(x: Vector) -> Vector:
    scale = (dot(x, x) * (1.0 / len(x)) + 1e-5) ** -0.5
    return [v * scale for v in x]


def softmax(scores: Vector) -> Vector:
    top = max(v.data for v in scores)
    powers = [(v - top).exp() for v in scores]
    total = powers[0]
    for p in powers[1:]:
        total = total + p
    share = total ** -1.0
    return [p * share for p in powers]


class Model:
    def __init__(self, chars: str, config: Config, rng: random.Random) -> None:
        self.chars = chars
        self.config = config
        self.bos = len(chars)
        d, v = config.n_embd, len(chars) + 1
        shapes = {"wte": (v, d), "wpe": (config.block_size, d), "lm_head": (v, d)}
        for i in range(config.n_layer):
            for name in ("wq", "wk", "wv", "wo"):
                shapes[f"layer{i}.attn_{name}"] = (d, d)
            shapes[f"layer{i}.mlp_fc1"] = (4 * d, d)
            shapes[f"layer{i}.mlp_fc2"] = (d, 4 * d)
        self.weights: dict[str, Matrix] = {
            name: [[Value(rng.gauss(0.0, config.init_std)) for _ in range(cols)] for _ in range(rows)]
            for name, (rows, cols) in shapes.items()
        }
        self.parameters = [p for m in self.weights.values() for row in m for p in row]

    def forward(self, token, position, cache) -> Vector:
        w = self.weights
        x = rms_norm(add(w["wte"][token], w["wpe"][position]))
        n_head = self.config.n_head
        size = self.config.n_embd // n_head
        for i, (keys, values) in enumerate(cache):
            h = rms_norm(x)
            query = linear(h, w[f"layer{i}.attn_wq"])
            keys.append(linear(h, w[f"layer{i}.attn_wk"]))
            values.append(linear(h, w[f"layer{i}.attn_wv"]))
            mixed: Vector = []
            for lo in range(0, n_head * size, size):
                hi = lo + size
                q = query[lo:hi]
                share = softmax([dot(q, key[lo:hi]) * size**-0.5 for key in keys])
                mixed += [dot(share, [v[j] for v in values]) for j in range(lo, hi)]
            x = add(x, linear(mixed, w[f"layer{i}.attn_wo"]))
            h = [v.relu() for v in linear(rms_norm(x), w[f"layer{i}.mlp_fc1"])]
            x = add(x, linear(h, w[f"layer{i}.mlp_fc2"]))
        return linear(x, w["lm_head"])

    def loss(self, doc: str) -> Value:
        ids = [self.bos] + [self.chars.index(c) for c in doc] + [self.bos]
        n = min(len(ids) - 1, self.config.block_size)
        cache = [([], []) for _ in range(self.config.n_layer)]
        total = Value(0.0)
        for position in range(n):
            logits = self.forward(ids[position], position, cache)
            top = max(v.data for v in logits)
            norm = Value(0.0)
            for v in logits:
                norm = norm + (v - top).exp()
            total = total + norm.log() - (logits[ids[position + 1]] - top)
        return total * (1.0 / n)


class Adam:
    def __init__(self, parameters: Vector, config: Config) -> None:
        self.parameters = parameters
        self.config = config
        self.m = [0.0] * len(parameters)
        self.v = [0.0] * len(parameters)
        self.steps = 0

    def step(self, lr: float) -> None:
        b1, b2, eps = self.config.beta1, self.config.beta2, self.config.eps
        self.steps += 1
        c1, c2 = 1.0 - b1**self.steps, 1.0 - b2**self.steps
        m, v = self.m, self.v
        for i, p in enumerate(self.parameters):
            g = p.grad
            m[i] = b1 * m[i] + (1.0 - b1) * g
            v[i] = b2 * v[i] + (1.0 - b2) * g * g
            p.data -= lr * (m[i] / c1) / (sqrt(v[i] / c2) + eps)
            p.grad = 0.0
