"""zoft with any module: meta-train a tuner for a plain MLP, then fine-tune with it, forward passes alone.

Run it with: python docs/examples/mlp.py
"""

import sys

import torch
from torch import nn

import zoft
from meta_train import MetaTrainConfig
from zoft.tasks.function import FunctionTask


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def make_batches(seed: int, count: int = 40, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A random direction to regress on: every seed is another task of the same family."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(8, 1, generator=generator) / 2
    inputs = torch.randn(count, size, 8, generator=generator)
    return [(x, torch.tanh(x @ direction)) for x in inputs]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def fine_tune(model: nn.Module, task: FunctionTask, steps: int, **method) -> float:
    """The task's loss after ``steps`` zeroth-order steps; the model is put back."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = zoft.ZerothOrder(model, **method)
    batches = task.train_batches(batch_size=16, seed=0)
    for _ in range(steps):
        batch = next(batches)
        optimizer.step(lambda batch=batch: loss(model, batch))
    result = task.evaluate(model)["loss"]
    model.load_state_dict(before)
    return result


def main(steps: int = 300) -> dict[str, float]:
    model = make_model()
    family = [FunctionTask(f"direction-{seed}", make_batches(seed), loss) for seed in (1, 2, 3)]
    config = MetaTrainConfig(steps=steps, restart_every=100)
    tuner = zoft.meta_train(model, family, config)

    unseen = FunctionTask("direction-9", make_batches(9), loss)
    results = {"before": unseen.evaluate(model)["loss"]}
    results["mezo"] = fine_tune(model, unseen, steps, method="mezo", lr=0.01)
    results["zo-finetuner"] = fine_tune(model, unseen, steps, method="zo-finetuner", lr=0.01, tuner=tuner.bind(model))
    for name, value in results.items():
        print(f"{name:>12}: loss {value:.4f}")
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
