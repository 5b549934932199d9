"""A whole GPT on Python floats: autograd, transformer, Adam, sampling. Standard library only.

Read it from top to bottom: nothing is hidden in another file, and the rest of microgpt computes the same
thing faster. ``python -m microgpt.scalar`` reads a list of names, learns which letter tends to follow which,
and invents new names. The algorithm is that of Andrej Karpathy's microgpt.

The build also compiles this very source, as ``microgpt._scalar``, with the same losses to the last bit.
"""

import argparse
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

# --------------------------------------------------------------------------------------- 1. autograd
# Training asks one thing of every weight: if it grew a little, how much would the loss grow? That is its
# gradient. A formula, however long, is a graph of small steps whose own slopes are known. So each step
# notes its inputs and the slope towards each of them, and the chain rule multiplies along the paths.


class Value:
    """A number that knows how it was made; `grad` is d(loss)/d(this) once ``loss.backward()`` has run."""

    # Two fixed places for inputs, not a tuple of them: one training step makes 50,000 of these objects
    # or more, and tuples in each would nearly double the time that the step takes (measured: 82 to 150 ms).
    __slots__ = ("data", "dleft", "dright", "grad", "left", "right", "users")

    def __init__(self, data: float) -> None:
        self.data = data
        self.grad = 0.0
        self.left: Value | None = None  # a weight or a constant was made from nothing
        self.right: Value | None = None
        self.dleft = self.dright = 0.0
        self.users = 0

    # `+`, `*` and `**` are the only operators with slopes of their own ...
    def __add__(self, other: "Value | float") -> "Value":
        b: Value = other if isinstance(other, Value) else Value(other)
        return node(self.data + b.data, self, 1.0, b, 1.0)

    def __mul__(self, other: "Value | float") -> "Value":
        b: Value = other if isinstance(other, Value) else Value(other)
        return node(self.data * b.data, self, b.data, b, self.data)

    def __pow__(self, power: float) -> "Value":
        # math.pow: of a negative number, `**` may be complex, and a loss that turns nan must stay a float.
        return node(math.pow(self.data, power), self, power * math.pow(self.data, power - 1.0))

    # ... and the others are spelled with those, so there is nothing in them to get wrong.
    def __radd__(self, other: float) -> "Value":
        return self + other

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __neg__(self) -> "Value":
        return self * -1.0

    def __rsub__(self, other: float) -> "Value":
        return self * -1.0 + other

    def __sub__(self, other: "Value | float") -> "Value":
        return self + other * -1.0

    def __truediv__(self, other: "Value | float") -> "Value":
        return self * other**-1.0

    def __repr__(self) -> str:
        return f"Value({self.data!r}, grad={self.grad!r})"

    def backward(self) -> None:
        """Add d(self)/d(v) to ``v.grad`` of every `v` that this one was made from, and use up the graph.

        Gradients add up over calls until set back to 0. Afterwards every step counts as a constant.
        """
        # A step may hand its gradient down only when everyone who used it has added a share. So first count
        # the users of each step. (A list of things to do, not recursion: the graph is deeper than the stack.)
        here: Value = self
        todo = [here]
        while todo:
            here = todo.pop()
            left, right = here.left, here.right
            if left is not None:
                if left.users == 0:  # met for the first time
                    todo.append(left)
                left.users += 1
            if right is not None:
                if right.users == 0:
                    todo.append(right)
                right.users += 1
        # Then go down again, visiting a step when the last of its users has reported; counts end at 0.
        self.grad += 1.0
        todo = [self]
        while todo:
            here = todo.pop()
            grad = here.grad
            left, right = here.left, here.right
            if left is not None:
                left.grad += here.dleft * grad
                left.users -= 1
                if left.users == 0:
                    todo.append(left)
            if right is not None:
                right.grad += here.dright * grad
                right.users -= 1
                if right.users == 0:
                    todo.append(right)
            # Cut as we go: memory comes back step by step. Left whole, the graph would be freed link after
            # link by one nested C call each, and a chain of a million of those overflows the stack.
            here.left = here.right = None


def node(data: float, left: Value, dleft: float, right: Value | None = None, dright: float = 0.0) -> Value:
    """A step of the computation: its result, its inputs, and its slope with respect to each input."""
    # Passing by __init__ lets Cython turn this into one plain C call, which saves a fifth of a step.
    made: Value = Value.__new__(Value)
    made.data = data
    made.grad = 0.0
    made.left = left
    made.dleft = dleft
    made.right = right
    made.dright = dright
    made.users = 0  # uses that still owe this step their share of the gradient; only backward() counts them
    return made


def exp(x: Value) -> Value:
    """e to the power x."""
    power = math.exp(x.data)
    return node(power, x, power)


def log(x: Value) -> Value:
    """The natural logarithm of x; raises ValueError unless x > 0."""
    return node(math.log(x.data), x, 1.0 / x.data)


def relu(x: Value) -> Value:
    """x where positive, else 0: the bend without which two layers would be no more than one."""
    return node(x.data, x, 1.0) if x.data > 0.0 else node(0.0, x, 0.0)


def release(results: "list[Value]") -> None:
    """Cut `results` and all they were made from loose from one another, when no gradient is wanted."""
    todo = list(results)
    while todo:
        here: Value = todo.pop()
        todo += [child for child in (here.left, here.right) if child is not None]
        here.left = here.right = None


# ------------------------------------------------------------------------------------ 2. vector maths
Vector = list[Value]
Matrix = list[list[Value]]  # a list of rows


def dot(a: Vector, b: Vector) -> Value:
    """The sum of a[i] * b[i]: how much two vectors agree. Nearly all of the work happens here."""
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total = total + a[i] * b[i]
    return total


def linear(x: Vector, weight: Matrix) -> Vector:
    """One output for each row of `weight`: how much x agrees with that row."""
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
    powers = [exp(v - top) for v in scores]
    scale = total(powers) ** -1.0
    return [p * scale for p in powers]


def total(values: Vector) -> Value:
    """The sum of one or more Values."""
    result = values[0]
    for v in values[1:]:
        result = result + v
    return result


# ------------------------------------------------------------------------------------------ 3. model
@dataclass(frozen=True)
class Config:
    """Size of the model and settings of its training; the defaults learn 1,000 names in about a minute.

    Raises ValueError for a size below 1, or a width that the heads cannot share equally.
    """

    n_layer: int = 1
    n_embd: int = 16  # numbers that stand for one token
    n_head: int = 4
    block_size: int = 16  # the most tokens the model looks at
    init_std: float = 0.08
    lr: float = 0.01
    beta1: float = 0.85
    beta2: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if min(self.n_layer, self.n_embd, self.n_head, self.block_size) < 1:
            raise ValueError(f"every size must be at least 1: {self}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} cannot be split equally among {self.n_head} heads")


Cache = list[tuple[Matrix, Matrix]]  # for each layer, the keys and the values of the tokens read so far


class Model:
    """A GPT over the characters `chars`, its weights drawn from `rng`; they are in `weights`, by name."""

    def __init__(self, chars: str, config: Config, rng: random.Random) -> None:
        self.chars = chars
        self.ids = {c: i for i, c in enumerate(chars)}
        self.bos = len(chars)  # one more token marks where a document begins and ends
        self.config = config
        width, vocab = config.n_embd, len(chars) + 1
        shapes = {"wte": (vocab, width), "wpe": (config.block_size, width), "lm_head": (vocab, width)}
        for i in range(config.n_layer):
            for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
                shapes[f"layer{i}.{name}"] = (width, width)
            shapes[f"layer{i}.mlp_fc1"] = (4 * width, width)
            shapes[f"layer{i}.mlp_fc2"] = (width, 4 * width)
        # Random, or all rows would get equal gradients and stay equal; small, so that no token is favoured.
        self.weights: dict[str, Matrix] = {
            name: [[Value(rng.gauss(0.0, config.init_std)) for _ in range(cols)] for _ in range(rows)]
            for name, (rows, cols) in shapes.items()
        }
        self.parameters = [p for matrix in self.weights.values() for row in matrix for p in row]

    def floats(self) -> dict[str, list[list[float]]]:
        """A copy of the weights as plain numbers: name to rows."""
        return {name: [[p.data for p in row] for row in matrix] for name, matrix in self.weights.items()}

    def forward(self, token: int, position: int, cache: Cache) -> Vector:
        """Read one token and score every token as the next one; its keys and values join the `cache`.

        Reading one token at a time makes attention causal for free: the future is not in the cache yet.
        """
        w = self.weights
        size = self.config.n_embd // self.config.n_head
        # A position has a vector too, since attention alone cannot tell the order of what it looks at.
        x = rms_norm(add(w["wte"][token], w["wpe"][position]))
        for i, (keys, values) in enumerate(cache):
            # Attention gathers from other tokens: my query against each one's key says how much of its value.
            h = rms_norm(x)
            query = linear(h, w[f"layer{i}.attn_wq"])
            keys.append(linear(h, w[f"layer{i}.attn_wk"]))
            values.append(linear(h, w[f"layer{i}.attn_wv"]))
            gathered: Vector = []
            for lo in range(0, self.config.n_embd, size):  # each head looks for something else, in its slice
                hi = lo + size
                q = query[lo:hi]
                # Longer vectors have larger products; over sqrt(size), lest softmax pick just one key.
                shares = softmax([dot(q, key[lo:hi]) * size**-0.5 for key in keys])
                gathered += [dot(shares, [v[j] for v in values]) for j in range(lo, hi)]
            # Adding to x, not replacing it, leaves gradients a straight way back to the embeddings.
            x = add(x, linear(gathered, w[f"layer{i}.attn_wo"]))
            # The MLP thinks about what was gathered, each token by itself, in four times the width.
            h = [relu(v) for v in linear(rms_norm(x), w[f"layer{i}.mlp_fc1"])]
            x = add(x, linear(h, w[f"layer{i}.mlp_fc2"]))
        return linear(x, w["lm_head"])

    def encode(self, doc: str) -> list[int]:
        """Token numbers of `doc` between two end tokens; raises ValueError for an unknown character."""
        unknown = sorted(set(doc) - set(self.chars))
        if unknown:
            raise ValueError(f"character {unknown[0]!r} is not one that the model knows: {self.chars!r}")
        return [self.bos, *map(self.ids.__getitem__, doc), self.bos]

    def loss(self, doc: str) -> Value:
        """The mean surprise, in nats, at each next token of `doc`; reads its first `block_size` tokens."""
        tokens = self.encode(doc)
        count = min(len(tokens) - 1, self.config.block_size)
        cache: Cache = [([], []) for _ in range(self.config.n_layer)]
        surprises: Vector = []
        for i in range(count):
            logits = self.forward(tokens[i], i, cache)
            # -log(softmax(logits)[next]) with the division turned into a difference: no log(0).
            top = max([v.data for v in logits])
            surprises.append(log(total([exp(v - top) for v in logits])) - (logits[tokens[i + 1]] - top))
        return total(surprises) * (1.0 / count)


# --------------------------------------------------------------------------------------- 4. training
class Adam:
    """Gradient descent in which every weight has its own stride, about `lr` whatever its gradient's size."""

    def __init__(self, parameters: Vector, config: Config) -> None:
        self.parameters = parameters
        self.config = config
        self.mean = [0.0] * len(parameters)  # of the gradient, lately: evens out single documents
        self.square = [0.0] * len(parameters)  # of its square: how large it usually is
        self.updates = 0

    def update(self, lr: float) -> None:
        """Move every weight against its gradient and set the gradient back to 0."""
        beta1, beta2, eps = self.config.beta1, self.config.beta2, self.config.eps
        self.updates += 1
        # Both means start at 0 and are too small at first; these are the shares of the weight they have seen.
        seen1, seen2 = 1.0 - beta1**self.updates, 1.0 - beta2**self.updates
        mean, square = self.mean, self.square
        for i, p in enumerate(self.parameters):
            mean[i] = beta1 * mean[i] + (1.0 - beta1) * p.grad
            square[i] = beta2 * square[i] + (1.0 - beta2) * p.grad * p.grad
            p.data -= lr * (mean[i] / seen1) / (math.sqrt(square[i] / seen2) + eps)
            p.grad = 0.0


def learn(model: Model, optimizer: Adam, doc: str, lr: float) -> float:
    """One training step: make `doc` less surprising to the model; returns the loss before the update.

    Raises FloatingPointError where the loss is not a finite number, and leaves the weights as they were.
    """
    # The search for reference cycles would double the time of a step and can find none: a Value refers only
    # to older ones, so the graph goes when its last reference does.
    was_on = gc.isenabled()
    gc.disable()
    try:
        loss = model.loss(doc)
        if not math.isfinite(loss.data):
            release([loss])
            raise FloatingPointError(f"the loss became {loss.data}: try a smaller lr")
        loss.backward()
    finally:
        if was_on:
            gc.enable()
    optimizer.update(lr)
    return loss.data


def prepare(docs: Sequence[str], seed: int = 42, config: Config | None = None) -> tuple[list[str], Model]:
    """The documents in training order and the untrained model; raises ValueError where there are none."""
    if not docs:
        raise ValueError("there are no documents to learn from")
    rng = random.Random(seed)
    order = list(docs)
    rng.shuffle(order)
    chars = "".join(sorted(set("".join(order))))
    return order, Model(chars, config or Config(), rng)


def train(
    docs: Sequence[str],
    steps: int = 1000,
    seed: int = 42,
    config: Config | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[Model, list[float]]:
    """Learn from one document a step; return the model and the loss of every step.

    `on_step` is called with the step's index and loss. Raises ValueError for no documents or negative
    `steps`, and FloatingPointError where the loss stops being a finite number.
    """
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    order, model = prepare(docs, seed, config)
    optimizer = Adam(model.parameters, model.config)
    losses: list[float] = []
    for step in range(steps):
        # Strides shrink to 0 in a straight line: long ones to arrive soon, short ones to settle.
        lr = model.config.lr * (1.0 - step / steps)
        losses.append(learn(model, optimizer, order[step % len(order)], lr))
        if on_step is not None:
            on_step(step, losses[-1])
    return model, losses


# --------------------------------------------------------------------------------------- 5. sampling
def sample(model: Model, count: int = 20, temperature: float = 0.5, seed: int = 42) -> list[str]:
    """Invent `count` documents of at most `block_size` characters, the same for the same seed.

    A `temperature` below 1 prefers the likely, above 1 the unlikely; raises ValueError unless it is above 0.
    """
    _check_sampling(count, temperature)
    rng = random.Random(seed)
    return [_invent(model, temperature, rng) for _ in range(count)]


def _check_sampling(count: int, temperature: float) -> None:
    if count < 0:
        raise ValueError(f"the number of samples must be 0 or more, got {count}")
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, got {temperature}")


def _invent(model: Model, temperature: float, rng: random.Random) -> str:
    cache: Cache = [([], []) for _ in range(model.config.n_layer)]
    token, text = model.bos, ""
    for position in range(model.config.block_size):
        logits = model.forward(token, position, cache)
        scores = [v.data for v in logits]
        release(logits)
        top = max(scores)  # softmax once more; rng.choices does the division
        odds = [math.exp((s - top) / temperature) for s in scores]
        token = rng.choices(range(len(odds)), odds)[0]
        if token == model.bos:
            break
        text += model.chars[token]
    return text


# ----------------------------------------------------------------------------------- 6. command line
NAMES = Path(__file__).parent / "data" / "names.txt"


def load_docs(path: str | Path = NAMES) -> list[str]:
    """The lines of a text file that are not blank, by default the names that come with microgpt.

    Raises OSError where the file cannot be read, and ValueError where it is not UTF-8 or holds no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: bad byte at offset {error.start}") from None
    docs = [line.strip() for line in text.splitlines() if line.strip()]
    if not docs:
        raise ValueError(f"{path} holds no text")
    return docs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, as for every other error of this program
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or exits with 1 where training diverges and 2 for bad input."""
    parser = _Parser(
        prog="python -m microgpt.scalar",
        description="Train a small GPT on the lines of a text file, float by float, then invent new lines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flag = parser.add_argument
    flag("--data", metavar="FILE", default=NAMES, help="UTF-8 text, one document a line")
    flag("--steps", type=int, default=1000, help="documents to learn from")
    flag("--samples", type=int, default=20, help="documents to invent afterwards")
    flag("--temperature", type=float, default=0.5, help="below 1 plays safe, above 1 is daring")
    flag("--seed", type=int, default=42, help="the same seed gives the same run")
    flag("--n-layer", type=int, default=Config.n_layer, help="layers")
    flag("--n-embd", type=int, default=Config.n_embd, help="numbers that stand for one token")
    flag("--n-head", type=int, default=Config.n_head, help="attention heads")
    flag("--block-size", type=int, default=Config.block_size, help="most tokens looked at")
    flag("--lr", type=float, default=Config.lr, help="learning rate of the first step")
    args = parser.parse_args(argv)
    recent: list[float] = []
    start = time.perf_counter()
    live = sys.stderr.isatty()  # a terminal sees one line that changes; a log file, about ten lines

    def progress(step: int, loss: float) -> None:
        recent.append(loss)
        del recent[:-50]  # single documents differ too much to show where the loss is going
        done = step + 1
        if live or done == args.steps or done % max(1, args.steps // 10) == 0:
            mean, pace = sum(recent) / len(recent), 1000.0 * (time.perf_counter() - start) / done
            before, after = ("\r", "\n" if done == args.steps else "") if live else ("", "\n")
            line = f"{before}step {done:4d}/{args.steps}  loss {mean:.3f}  {pace:.0f} ms/step{after}"
            print(line, end="", file=sys.stderr, flush=True)

    try:
        _check_sampling(args.samples, args.temperature)  # now, not after a minute of training
        config = Config(args.n_layer, args.n_embd, args.n_head, args.block_size, lr=args.lr)
        docs = load_docs(args.data)
        print(f"{len(docs)} documents from {args.data}", file=sys.stderr)
        model, _ = train(docs, args.steps, args.seed, config, progress)
        print("\n".join(sample(model, args.samples, args.temperature, args.seed)))
    except (OSError, ValueError, FloatingPointError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        parser.exit(1 if isinstance(error, FloatingPointError) else 2, f"{parser.prog}: error: {reason}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
