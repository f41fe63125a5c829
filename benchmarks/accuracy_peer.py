"""The strongest peer on the terms of `accuracy.py`: Torch-Pruning's group norm.

    PYTHON benchmarks/accuracy_peer.py NET METHOD RATIO SEED IMAGES FOLDER

Run by `accuracy.py --peer PYTHON`, whose environment has `torch==2.13.0` and
`torch-pruning==1.6.1` and no Keras (`benchmarks/peers.sh` makes it). The same nets,
data, batches, epochs, optimizer and rates as there; initial weights as Keras draws
them. Prints one line of JSON. Two ways to prune, as in the peer's own reproduction
of its paper (Fang et al., CVPR 2023, https://arxiv.org/abs/2301.12900): `group norm`
removes at once and fine-tunes for all of the epochs; `sparse learning` spends half of
them on its regulariser first.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from accuracy_data import BATCH, EPOCHS, RATE, load_fashion


def conv(read, made, size, strides=1, groups=1):
    """A convolution without bias and its norm, as Keras sets them up."""
    layer = nn.Conv2d(
        read, made, size, strides, padding=size // 2, groups=groups, bias=False
    )
    nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(layer, nn.BatchNorm2d(made, eps=1e-3, momentum=0.1))


class Residual(nn.Module):
    def __init__(self, read, made, strides):
        super().__init__()
        self.first, self.second = conv(read, made, 3, strides), conv(made, made, 3)
        self.short = nn.Identity() if read == made else conv(read, made, 1, strides)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


class Inverted(nn.Module):
    def __init__(self, read, made, strides):
        super().__init__()
        self.widen = conv(read, 4 * read, 1)
        self.depthwise = conv(4 * read, 4 * read, 3, strides, groups=4 * read)
        self.narrow = conv(4 * read, made, 1)
        self.adds = strides == 1 and read == made

    def forward(self, x):
        y = F.relu6(self.depthwise(F.relu6(self.widen(x))))
        return x + self.narrow(y) if self.adds else self.narrow(y)


class Net(nn.Module):
    """A stem, blocks, perhaps one more convolution, and the mean under a head."""

    def __init__(self, blocks, width, strides, last, activation):
        super().__init__()
        self.stem = conv(1, width, 3, strides)
        self.blocks = nn.Sequential(*blocks)
        self.last, self.activation = last or nn.Identity(), activation
        self.is_last = last is not None
        read = last[0].out_channels if last else blocks[-1].second[0].out_channels
        self.head = nn.Linear(read, 10)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.blocks(self.activation(self.stem(x)))
        x = self.activation(self.last(x)) if self.is_last else x
        return self.head(x.mean((2, 3)))


def resnet(width=16):
    blocks = [Residual(width, width, 1), Residual(width, 2 * width, 2)]
    blocks += [Residual(2 * width, 4 * width, 2)]
    return Net(blocks, width, 1, None, F.relu)


def mobilenet(width=16):
    blocks, read = [], width
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
        blocks.append(Inverted(read, filters * width // 16, strides))
        read = filters * width // 16
    return Net(blocks, width, 2, conv(read, 8 * width, 1), F.relu6)


def macs(model) -> int:
    """Multiply-accumulates of one image, counted as `filterprune.analyze` does."""
    total, handles = [0], []

    def count(layer, inputs, output):
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        total[0] += positions * layer.weight.numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            handles.append(layer.register_forward_hook(count))
    training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    model.train(training)
    for handle in handles:
        handle.remove()
    return total[0]


def fit(model, data, epochs, rng, total=None, first=0, regularize=None) -> None:
    """Adam with a cosine decay over `total` epochs, from the epoch `first` on."""
    x, y = data[:2]
    steps = -(-len(x) // BATCH)
    whole = (total or epochs) * steps
    optimizer = torch.optim.Adam(model.parameters(), RATE, eps=1e-7)
    model.train()
    step = first * steps
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(x)))
        for rows in order.split(BATCH):
            share = 0.5 * (1 + np.cos(np.pi * step / whole))
            for group in optimizer.param_groups:
                group["lr"] = RATE * (0.99 * share + 0.01)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            if regularize is not None:
                regularize(model)
            optimizer.step()
            step += 1
    model.eval()


@torch.no_grad()
def accuracy(model, data) -> float:
    model.eval()
    parts = zip(data[2].split(500), data[3].split(500))
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(data[2])


def pruner_of(model, normalizer):
    import torch_pruning as tp

    return tp.pruner.GroupNormPruner(
        model,
        torch.zeros(1, 1, 28, 28),
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer=normalizer),
        reg=5e-4,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=[model.head],
    )


def prune(model, pruner, target) -> None:
    """Step by step, as the peer's own benchmark does, until so few are left."""
    while macs(model) > target:
        before = macs(model)
        pruner.step()
        if pruner.current_step >= pruner.iterative_steps and macs(model) == before:
            raise RuntimeError(f"cannot be pruned below {before:,} MACs")


def measure(net, method, ratio, seed, data, folder) -> dict:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    path = folder / f"peer-{net}-{seed}.pt"
    started = time.perf_counter()
    model = {"resnet": resnet, "mobilenet": mobilenet}[net]()
    if not path.exists():
        fit(model, data, EPOCHS["dense"], rng)
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path))
    if method != "dense":
        target = macs(model) / ratio
        sparse = EPOCHS["tune"] // 2 if method == "sparse learning" else 0
        pruner = pruner_of(model, "max" if sparse else "mean")
        total = EPOCHS["tune"]
        if sparse:
            fit(model, data, sparse, rng, total, 0, pruner.regularize)
        prune(model, pruner, target)
        fit(model, data, total - sparse, rng, total, sparse)
    return {
        "accuracy": accuracy(model, data),
        "macs": macs(model),
        "params": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=["resnet", "mobilenet"])
    parser.add_argument("method", choices=["dense", "group norm", "sparse learning"])
    parser.add_argument("ratio", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("images", type=int)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    x, y, test_x, test_y = load_fashion(args.images)
    data = [torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (x, test_x)]
    labels = [torch.from_numpy(a.astype("int64")) for a in (y, test_y)]
    data = (data[0], labels[0], data[1], labels[1])
    found = measure(args.net, args.method, args.ratio, args.seed, data, args.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
