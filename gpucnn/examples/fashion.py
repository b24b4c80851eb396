"""Train a network to classify clothes: ``python -m gpucnn.examples.fashion --out DIR``.

Fashion-MNIST: 60,000 pictures of 28×28 pixels to train on, 10,000 to test with, of which more than 90 % are classified
correctly after a few minutes on the CPU. The network suits gpucnn's NumPy backend: dense convolutions, which become
large matrix products, with strides in place of pooling, and no normalisation: both take long there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpucnn import data, nn
from gpucnn.examples._report import options, parse, report, threads


def network(rng: np.random.Generator) -> nn.Sequential:
    """Images [N, 1, 28, 28] to scores [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2, rng=rng),  # 14×14
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, rng=rng),  # 7×7
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, rng=rng),  # 5×5
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3, rng=rng),
        nn.Linear(128 * 5 * 5, 10, rng=rng),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, test, report; the exit status is 0 if the target was reached."""
    parser = options("fashion", "Train a network on Fashion-MNIST.", epochs=6, target=0.9)
    parser.add_argument("--data", type=Path, help="folder of the four IDX files (the system's data folders)")
    chosen = parse(parser, arguments)
    try:
        train, test = data.fashion_mnist(chosen.data)
    except FileNotFoundError as error:
        print(f"{error}.", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)

    statistics = data.channel_statistics(train.x)
    x_train, x_test = (data.normalize(part.x, *statistics) for part in (train, test))
    loader = data.Loader(x_train, train.y, batch_size=64, shuffle=True, rng=chosen.seed, augment=data.Flip())
    tests = data.Loader(x_test, test.y, batch_size=500)

    model = network(np.random.default_rng(chosen.seed))
    print(nn.summary(model, train.x.shape[1:]))
    optimizer = nn.AdamW(model.parameters(), lr=3e-3)
    schedule = nn.OneCycleLR(optimizer, max_lr=3e-3, total_steps=chosen.epochs * len(loader))
    with threads(chosen.threads):
        history = nn.fit(
            model,
            loader,
            loss=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            schedule=schedule,
            epochs=chosen.epochs,
            validation=tests,
        )
        return 0 if report(chosen.out, "Fashion-MNIST", model, history, test, x_test, chosen.target) else 1


if __name__ == "__main__":
    sys.exit(main())
