"""A whole GPT on Python floats: autograd, transformer, Adam, sampling. Standard library only.

``python -m microgpt.scalar`` reads a list of names, learns which letter tends to follow which, and invents new
names. The algorithm is that of Andrej Karpathy's microgpt; the rest of this package computes the same thing faster.
The build also compiles this very source, as ``microgpt._scalar``, with the same losses to the last bit.
"""

import argparse
import gc
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path


# Training asks one thing of every weight: if it grew a little, how much would the loss grow? That is its
# gradient. The loss is a graph of small steps whose own slopes are known, so each step notes its inputs and its
# slope towards each of them, and the chain rule multiplies the slopes along the paths.
class Value:
    """A number that knows how it was made; `grad` is d(loss)/d(this) once ``loss.backward()`` has run."""

    # A training step makes 50,000 of these; with a tuple of inputs in each, it would take nearly twice as long.
    __slots__ = ("data", "dleft", "dright", "grad", "left", "right", "users")

    def __init__(self, data: float) -> None:
        self.data, self.grad = data, 0.0
        self.left: Value | None = None  # a weight or a constant was made from nothing
        self.right: Value | None = None
        self.dleft = self.dright = 0.0
        self.users = 0  # steps that still owe this one a share of its gradient

    def __add__(self, other: "Value | float") -> "Value":
        b: Value = other if isinstance(other, Value) else Value(other)
        return node(self.data + b.data, self, 1.0, b, 1.0)

    def __mul__(self, other: "Value | float") -> "Value":
        b: Value = other if isinstance(other, Value) else Value(other)
        return node(self.data * b.data, self, b.data, b, self.data)

    def __pow__(self, power: float) -> "Value":
        # math.pow: Cython compiles `**` to a power of complex numbers, which rounds otherwise.
        return node(math.pow(self.data, power), self, power * math.pow(self.data, power - 1.0))

    def exp(self) -> "Value":
        power = math.exp(self.data)
        return node(power, self, power)

    def log(self) -> "Value":
        return node(math.log(self.data), self, 1.0 / self.data)

    def relu(self) -> "Value":
        return node(self.data, self, 1.0) if self.data > 0.0 else node(0.0, self, 0.0)

    def backward(self) -> None:
        """Add d(self)/d(v) to ``v.grad`` of every `v` that this was made from, and use up the graph."""
        # A step may pass its gradient on only when all its users have added to it, so count the users first.
        todo = [self]  # a list of what to visit, not recursion: the graph is deeper than Python's stack
        while todo:
            here: Value = todo.pop()
            left, right = here.left, here.right
            if left is not None:
                if left.users == 0:  # met for the first time
                    todo.append(left)
                left.users += 1
            if right is not None:
                if right.users == 0:
                    todo.append(right)
                right.users += 1
        self.grad = 1.0
        todo = [self]
        while todo:
            here = todo.pop()
            left, right = here.left, here.right
            here.left = here.right = None  # its memory can go now, not only at the end
            if left is not None:
                left.grad += here.dleft * here.grad
                left.users -= 1
                if left.users == 0:  # that was its last user
                    todo.append(left)
            if right is not None:
                right.grad += here.dright * here.grad
                right.users -= 1
                if right.users == 0:
                    todo.append(right)


def node(data: float, left: Value, dleft: float, right: Value | None = None, dright: float = 0.0) -> Value:
    """A step of the computation: its result, its inputs, and its slope towards each of them."""
    made: Value = Value.__new__(Value)  # around __init__, so that Cython makes this one C call: a fifth faster
    made.data, made.grad, made.users = data, 0.0, 0
    made.left, made.dleft = left, dleft
    made.right, made.dright = right, dright
    return made


Vector = list[Value]
Matrix = list[Vector]  # rows


def dot(a: Vector, b: Vector) -> Value:
    """The sum of a[i] * b[i]: how much two vectors agree. Nearly all of the work happens here."""
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def linear(x: Vector, weight: Matrix) -> Vector:
    """How much x agrees with each row of `weight`."""
    return [dot(row, x) for row in weight]


def add(a: Vector, b: Vector) -> Vector:
    """The elementwise sum."""
    return [p + q for p, q in zip(a, b, strict=True)]


def rms_norm(x: Vector) -> Vector:
    """x scaled to a mean square of 1, so that no layer has to cope with numbers that grow or fade."""
    scale = (dot(x, x) * (1.0 / len(x)) + 1e-5) ** -0.5  # 1e-5: an all-zero x must not divide by 0
    return [v * scale for v in x]


def softmax(scores: Vector) -> Vector:
    """Positive shares that add up to 1 and grow with the scores."""
    top = max([v.data for v in scores])  # shares do not change if all scores move; exp then cannot overflow
    powers = [(v + -top).exp() for v in scores]
    scale = sum(powers[1:], powers[0]) ** -1.0
    return [p * scale for p in powers]


class GPT:
    """Scores every character of `chars`, and the end, as the next one; `weights` holds its matrices by name."""

    def __init__(
        self, chars: str, rng: random.Random, layers: int = 1, width: int = 16, heads: int = 4, block_size: int = 16
    ) -> None:
        if width % heads:
            raise ValueError(f"width {width} cannot be split equally among {heads} heads")
        self.chars, self.layers, self.width, self.heads, self.block_size = chars, layers, width, heads, block_size
        self.end = len(chars)  # one more token, before and after every document
        vocab = len(chars) + 1
        shapes = {"wte": (vocab, width), "wpe": (block_size, width), "lm_head": (vocab, width)}
        for i in range(layers):
            shapes |= {f"layer{i}.attn_{name}": (width, width) for name in ("wq", "wk", "wv", "wo")}
            shapes |= {f"layer{i}.mlp_fc1": (4 * width, width), f"layer{i}.mlp_fc2": (width, 4 * width)}
        # Random, or all rows would get equal gradients and stay equal; small, so that no token is favoured.
        self.weights: dict[str, Matrix] = {
            name: [[Value(rng.gauss(0.0, 0.08)) for _ in range(columns)] for _ in range(rows)]
            for name, (rows, columns) in shapes.items()
        }

    def forward(self, token: int, position: int, cache: list[tuple[Matrix, Matrix]]) -> Vector:
        """Scores (logits) of each next token. The `cache` holds, for each layer, the keys and values read so far."""
        # Reading one token at a time makes attention causal for free: the future is not in the cache yet.
        w, size = self.weights, self.width // self.heads
        # A position has a vector too, since attention alone cannot tell the order of what it looks at.
        x = rms_norm(add(w["wte"][token], w["wpe"][position]))
        for i, (keys, values) in enumerate(cache):
            # Attention gathers from other tokens: my query against each one's key says how much of its value.
            h = rms_norm(x)
            query = linear(h, w[f"layer{i}.attn_wq"])
            keys.append(linear(h, w[f"layer{i}.attn_wk"]))
            values.append(linear(h, w[f"layer{i}.attn_wv"]))
            gathered: Vector = []
            for lo in range(0, self.width, size):  # each head looks for something else, in its own slice
                hi = lo + size
                # Longer vectors have larger products; over sqrt(size), lest softmax pick just one key.
                shares = softmax([dot(query[lo:hi], key[lo:hi]) * size**-0.5 for key in keys])
                gathered += [dot(shares, [v[j] for v in values]) for j in range(lo, hi)]
            # Adding to x, not replacing it, leaves gradients a straight way back to the embeddings.
            x = add(x, linear(gathered, w[f"layer{i}.attn_wo"]))
            # The MLP works on what was gathered, token by token; without relu, two layers would be no more than one.
            h = [v.relu() for v in linear(rms_norm(x), w[f"layer{i}.mlp_fc1"])]
            x = add(x, linear(h, w[f"layer{i}.mlp_fc2"]))
        return linear(x, w["lm_head"])

    def loss(self, doc: str) -> Value:
        """The mean surprise, -log(probability), at each next token of `doc`, whose first `block_size` it reads."""
        tokens = [self.end, *[self.chars.index(c) for c in doc], self.end][: self.block_size + 1]
        cache: list[tuple[Matrix, Matrix]] = [([], []) for _ in range(self.layers)]
        total = Value(0.0)
        for i in range(len(tokens) - 1):
            total += softmax(self.forward(tokens[i], i, cache))[tokens[i + 1]].log()
        return total * (-1.0 / (len(tokens) - 1))


def prepare(docs: list[str], seed: int = 42, **size: int) -> tuple[list[str], GPT]:
    """The documents in training order and an untrained GPT of that `size`; ValueError where there are none."""
    if not docs:
        raise ValueError("there are no documents to learn from")
    rng = random.Random(seed)
    return rng.sample(docs, len(docs)), GPT("".join(sorted(set("".join(docs)))), rng, **size)


def train(
    docs: list[str], steps: int = 1000, seed: int = 42, verbose: bool = False, **size: int
) -> tuple[GPT, list[float]]:
    """Learn from one document a step with Adam; the model, and the loss of every step."""
    order, model = prepare(docs, seed, **size)
    weights = [p for matrix in model.weights.values() for row in matrix for p in row]
    mean, square = [0.0] * len(weights), [0.0] * len(weights)  # running averages of each gradient and of its square
    beta1, beta2, losses = 0.85, 0.99, list[float]()
    gc.disable()  # a search for reference cycles would double the time and find none: Values refer to older ones
    try:
        for step in range(steps):
            loss = model.loss(order[step % len(order)])
            loss.backward()
            losses.append(loss.data)
            # Adam steps down the gradient, each weight's stride scaled by the usual size of its own gradient.
            lr = 0.01 * (1.0 - step / steps)  # long strides to arrive soon, short ones to settle
            # The averages began at 0 and are too small by these factors at first.
            seen1, seen2 = 1.0 - beta1 ** (step + 1), 1.0 - beta2 ** (step + 1)
            for i, p in enumerate(weights):
                mean[i] = beta1 * mean[i] + (1.0 - beta1) * p.grad
                square[i] = beta2 * square[i] + (1.0 - beta2) * p.grad * p.grad
                p.data -= lr * (mean[i] / seen1) / (math.sqrt(square[i] / seen2) + 1e-8)
                p.grad = 0.0
            if verbose:
                recent = losses[-50:]  # single documents differ too much to show where the loss is going
                line = f"\rstep {step + 1}/{steps}  loss {sum(recent) / len(recent):.3f}"
                print(line, end="\n" * (step + 1 == steps), file=sys.stderr, flush=True)
    finally:
        gc.enable()
    return model, losses


def sample(model: GPT, count: int = 20, temperature: float = 0.5, seed: int = 42) -> list[str]:
    """Invent documents of at most `block_size` characters; a `temperature` near 0 plays safe, above 1 it dares."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        cache: list[tuple[Matrix, Matrix]] = [([], []) for _ in range(model.layers)]
        token, text = model.end, ""
        for position in range(model.block_size):
            shares = softmax([v * (1.0 / temperature) for v in model.forward(token, position, cache)])
            token = rng.choices(range(len(shares)), [p.data for p in shares])[0]
            if token == model.end:
                break
            text += model.chars[token]
        texts.append(text)
    return texts


NAMES = Path(__file__).parent / "data" / "names.txt"


def load_docs(path: str | Path = NAMES) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, by default the names that come with microgpt."""
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, then print samples; bad input exits with 2 and one line."""
    # Without a usage, argparse keeps its own errors to one line.
    parser = argparse.ArgumentParser("python -m microgpt.scalar", argparse.SUPPRESS, "Learn names, invent new ones.")
    parser.add_argument("--data", metavar="FILE", default=NAMES, help="UTF-8 text, one document a line")
    parser.add_argument("--steps", type=int, default=1000, help="documents to learn from")
    parser.add_argument("--samples", type=int, default=20, help="documents to invent afterwards")
    parser.add_argument("--temperature", type=float, default=0.5, help="below 1 plays safe, above 1 dares")
    parser.add_argument("--seed", type=int, default=42, help="the same seed gives the same run")
    args = parser.parse_args(argv)
    if args.steps < 0 or args.samples < 0 or not args.temperature > 0.0:
        parser.error("--steps and --samples must be 0 or more, --temperature above 0")
    try:
        model, _ = train(load_docs(args.data), args.steps, args.seed, verbose=True)
    except (OSError, ValueError) as error:
        parser.error(f"{args.data}: {error}")
    print("\n".join(sample(model, args.samples, args.temperature, args.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
